import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { Client } from 'pg';
import { Barrier } from '../kit/faults/barrier.js';
import { terminateSessions } from '../kit/faults/sessions.js';
import { expectWritable } from '../kit/faults/settled.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { runCli } from '../kit/cli.js';

/** What Patroni's coordinator side loses, each with what happens here. */
describe("what Patroni's coordinator side loses", () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    // Several reports name nodes that are not there.
    await h.startController({ MPP_VERIFY: 'off' });
  });
  afterAll(async () => h.stop());
  afterEach(async () => Barrier.liftAll(h));

  it('its session dies while traffic is paused: the pause is taken again, and recorded', async () => {
    const subject = await subjectOf(h, 1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(await terminateSessions(h.db, 'group')).toBeGreaterThan(0);
    await waitFor('the group to be held again', async () => {
      return (await h.holds()) === 1 && (await h.task(demote.id)).attempt > 1;
    });
    await expect(write(subject.key, '300ms')).rejects.toMatchObject({ code: '57014' });
    const history = await h.history(demote.id);
    expect(history.slice(0, 4)).toEqual(['pending', 'claimed', 'holding', 'pending']);
    expect(history.at(-1)).toBe('holding');
    await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    await subject.settled();
  });

  it('PostgreSQL restarts after before_promote: pg_dist_node is right in the end', async () => {
    const subject = await subjectOf(h, 1);
    await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    const promote = await h.request({ event: 'before_promote', groupid: 1, node: subject.next });
    await h.cluster.coordinator.restart('immediate');
    await h.reconnect();
    await waitFor('both tasks to be taken up again', async () => {
      const { attempt, status } = await h.task(promote.id);
      return attempt > 1 && status === 'holding';
    });
    const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    expect(after.status).toBe('done');
    expect((await h.ended(promote.id)).status).toBe('done');
    expect(await primaryAddress(h, 1)).toEqual(subject.next);
    await subject.settled();
  });

  it('a deadline with nothing else queued: the pause ends at it', async () => {
    const subject = await subjectOf(h, 1);
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '1s',
    });
    // The write waits for the deadline, not for another task.
    await write(subject.key, '3s');
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    await subject.settled();
  });

  it('a queued before_demote is replaced: its caller is answered', async () => {
    const subject = await subjectOf(h, 1);
    const barrier = await Barrier.beforeClaim(h);
    const replaced = await h.report({ event: 'before_demote', groupid: 1, node: subject.node });
    await barrier.reached();
    const caller = await h.cluster.coordinator.connect('caller');
    const answer = callerWaits(caller, replaced);
    const newer = await h.report({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(await answer).toBe('superseded');
    await caller.end();
    await barrier.lift();
    expect((await h.acknowledged(newer)).status).toBe('holding');
    await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    await subject.settled();
  });

  it('the same before_demote twice: neither is answered before the traffic waits', async () => {
    const subject = await subjectOf(h, 1);
    const barrier = await Barrier.beforeHold(h, subject.key);
    const report = {
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      cooldown: '20s',
    } as const;
    const ids = [await h.report(report)];
    await barrier.reached();
    ids.push(await h.report(report));
    const open = await Promise.all(ids.map(async (id) => (await h.task(id)).status));
    expect(open).toEqual(['claimed', 'pending']);
    await barrier.lift();
    for (const id of ids) {
      expect((await h.acknowledged(id)).status).toBe('holding');
      await expect(write(subject.key, '300ms')).rejects.toMatchObject({ code: '57014' });
    }
    await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    await subject.settled();
  });

  it('the SQL of a before_demote fails: the caller learns so, and is not to go on', async () => {
    const subject = await subjectOf(h, 1);
    // In nobody's way but the hold's, and never ended by force within its time.
    const barrier = await Barrier.beforeHold(h, subject.key);
    const { host, port } = subject.node;
    const { coordinator } = h.cluster;
    const caller = runCli(
      [
        ...['notify', 'before_demote', '--group', '1', '--host', host, '--port', String(port)],
        ...['--timeout', '500ms', '--cooldown', '20s', '--wait'],
      ],
      { DATABASE_URL: `postgres://postgres@${coordinator.host}:${coordinator.port}/postgres` },
    );
    await barrier.reached();
    const { exitCode } = await caller;
    expect(exitCode).not.toBe(0);
    await barrier.lift();
    await expectWritable(h, subject.key);
    await subject.settled();
  });

  it('after a rollback at the deadline the next failover works at once', async () => {
    const subject = await subjectOf(h, 1);
    const demote = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      timeout: '2s',
    });
    await h.request({ event: 'before_promote', groupid: 1, node: subject.next, timeout: '2s' });
    expect((await h.ended(demote.id)).status).toBe('rolled_back');
    const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    expect(after).toMatchObject({ status: 'done', attempt: 1 });
    expect(await primaryAddress(h, 1)).toEqual(subject.next);
    await subject.settled();
  });

  it('an unknown event is refused, and opens nothing', async () => {
    const subject = await subjectOf(h, 1);
    const { host, port } = subject.node;
    const insert =
      "INSERT INTO mpp_tasks (event, groupid, nodename, nodeport) VALUES ('demoting', 1, $1, $2)";
    await expect(h.db.query(insert, [host, port])).rejects.toMatchObject({ code: '22023' });
    expect(await h.holds()).toBe(0);
    await subject.settled();
  });

  it('rows of another node cluster are never touched', async () => {
    const subject = await subjectOf(h, 1);
    const theirs = { host: 'their-standby', port: 6432 };
    await waitFor('the metadata to be in sync, so that a node can be added', async () =>
      h.db.query("SELECT citus_add_node($1, $2, 1, 'secondary', 'theirs')", [
        theirs.host,
        theirs.port,
      ]),
    );
    const row = async (): Promise<unknown[]> => {
      const { rows } = await h.db.query<Record<string, unknown>>(
        `SELECT nodeid, groupid, nodename, nodeport, noderole, isactive, shouldhaveshards
         FROM pg_dist_node WHERE nodecluster = 'theirs'`,
      );
      return rows;
    };
    const before = await row();
    for (const secondaries of [[], ['our-standby:6432'], []]) {
      const after = await h.request({
        event: 'after_promote',
        groupid: 1,
        node: subject.next,
        secondaries,
      });
      expect(after.status).toBe('done');
      await subject.settled();
      expect(await row()).toEqual(before);
    }
    const taken = await h.request({ event: 'after_promote', groupid: 1, node: theirs });
    expect(taken.status).toBe('failed');
    expect(taken.reason).toContain('another node cluster');
    expect(await row()).toEqual(before);
    await subject.settled();
  });

  async function write(key: number, timeout: string): Promise<void> {
    await h.cluster.coordinator.withSession(async (session) => {
      await session.query("SELECT set_config('statement_timeout', $1, false)", [timeout]);
      await session.query('UPDATE notes SET v = v + 1 WHERE id = $1', [key]);
      await session.query('INSERT INTO notes VALUES ($1, 0)', [key]);
      await session.query('DELETE FROM notes WHERE id = $1', [key]);
    });
  }

  async function callerWaits(caller: Client, id: string): Promise<string | undefined> {
    const { rows } = await caller.query<{ status: string }>("CALL mpp_wait($1, '20s')", [id]);
    return rows[0]?.status;
  }
});
