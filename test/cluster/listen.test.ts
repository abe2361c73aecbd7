import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { FaultProxy } from '../kit/faults/proxy.js';
import { sessionsOf, terminateSessions } from '../kit/faults/sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

/** So long that what is answered sooner again and again was not found by looking. */
const POLL_MS = 2_000;

describe('the listening session', () => {
  let h: Harness;
  let proxy: FaultProxy;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    proxy = await FaultProxy.start(h.cluster.coordinator);
    await h.startController({
      DATABASE_URL: `postgres://postgres@127.0.0.1:${proxy.port}/postgres`,
      MPP_POLL: `${POLL_MS}ms`,
    });
  });
  afterAll(async () => {
    await h.stop();
    await proxy.stop();
  });

  it('is ended: another one listens, and nothing is lost', async () => {
    const subject = await subjectOf(h, 1);
    const [old] = await sessionsOf(h.db, 'listen');
    await terminateSessions(h.db, 'listen');
    expect((await discarded(subject)).status).toBe('discarded');
    await listensAgain(old);
    await expectWokenUp(subject);
  });

  it('is half-open: the table is looked at meanwhile, then another one listens', async () => {
    const subject = await subjectOf(h, 1);
    const [old] = await sessionsOf(h.db, 'listen');
    expect(proxy.swallow('mpp-controller listen')).toBe(1);
    for (let report = 1; report <= 2; report += 1) {
      expect((await discarded(subject)).status).toBe('discarded');
    }
    await listensAgain(old);
    await expectWokenUp(subject);
  });

  /** A report that is answered without a change. */
  async function discarded(subject: Subject) {
    const nobody = { ...subject.node, host: 'nobody' };
    return h.request({ event: 'before_demote', groupid: 1, node: nobody });
  }

  async function listensAgain(old: number | undefined): Promise<void> {
    await waitFor(
      'another session to listen',
      async () => {
        const { rowCount } = await h.db.query(LISTENING, [old ?? 0]);
        return rowCount !== 0;
      },
      { timeoutMs: 30_000 },
    );
  }

  async function expectWokenUp(subject: Subject): Promise<void> {
    const startedAt = performance.now();
    for (let report = 1; report <= 5; report += 1) await discarded(subject);
    expect(performance.now() - startedAt).toBeLessThan(POLL_MS);
  }
});

const LISTENING = `
  SELECT FROM pg_stat_activity
  WHERE application_name = 'mpp-controller listen'
    AND pid <> $1
    AND state = 'idle'
    AND query LIKE 'LISTEN%'`;
