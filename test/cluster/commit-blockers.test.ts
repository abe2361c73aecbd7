import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { primaryAddress, subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { primaryNodeId, waitUntilSynced } from '../kit/standin/observe.js';
import { waitFor } from '../kit/servers/index.js';

const BLOCK = 'LOCK TABLE pg_dist_node IN EXCLUSIVE MODE';
const CHANGE = 'SELECT citus_update_node($1, $2, $3)';
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

describe('what blocks a change of pg_dist_node', () => {
  let h: Harness;
  let controller: ControllerProcess;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2, standbys: false });
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
  });
  afterAll(async () => h.stop());

  async function client(application: string): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator, application);
    actors.push(actor);
    return actor;
  }

  /** Waits until the reason of a task says what it waits for. */
  async function reasonWith(id: string, text: string): Promise<string> {
    return waitFor(`the reason of task ${id} to name ${text}`, async () => {
      const { reason } = await h.task(id);
      return reason?.includes(text) ? reason : undefined;
    });
  }

  /** What `CHANGE` takes to move a group's primary. */
  async function changeOf(groupid: number, to: { host: string; port: number }) {
    return [await primaryNodeId(h.db, groupid), to.host, to.port];
  }

  it('is waited for inside the hold after each cancelled attempt, and clients wait as well', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next, key } = subject;
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '1min' });
    expect(demote.status).toBe('holding');
    const writer = await client('shop');
    const sent = await writer.sendAndWait(UPDATE, [key]);
    const backup = await client('backup');
    await backup.begin(BLOCK);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    for (const attempt of [1, 2, 3]) {
      await waitFor(`attempt ${attempt} to wait`, async () => {
        const { rows } = await h.db.query(CANCEL_CHANGE, [backup.pid]);
        return rows.length > 0;
      });
      await waitFor('a further attempt', async () => (await h.task(after)).attempt > attempt);
      expect((await h.task(demote.id)).status).toBe('holding');
      await writer.waitsForHold();
    }
    await backup.query('COMMIT');
    expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null });
    expect(await h.ended(demote.id)).toMatchObject({ status: 'done' });
    expect(await primaryAddress(h, 1)).toEqual(next);
    await sent.answer;
    await subject.settled();
  });

  it('ends with the deadline of the hold at the latest, whose reason says what the change waited for', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    await waitUntilSynced(h.db);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '3s' });
    const backup = await client('backup');
    await backup.begin(BLOCK);
    const after = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: next,
      cooldown: '1min',
    });
    const ended = await h.ended(demote.id);
    expect(ended.status).toBe('rolled_back');
    expect(ended.reason).toContain(`before task ${after} could change pg_dist_node`);
    expect(ended.reason).toContain(`pid ${backup.pid}`);
    await backup.query('COMMIT');
    expect((await h.ended(after)).status).toBe('done');
    await subject.settled();
  });

  it('is named within seconds and not ended where it keeps all changes away, as a backup does', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    await waitUntilSynced(h.db);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '1min' });
    const backup = await client('backup');
    await backup.begin(BLOCK);
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    const name = `pid ${backup.pid} (user postgres, application backup), idle in transaction since `;
    const reason = await reasonWith(after, name);
    expect(reason).toContain('keeps pg_dist_node from being changed and is waited for');
    await controller.logged('it', ({ msg, level }) => level === 'warn' && msg.includes(name));
    // The cooldown of a second is over by the second attempt.
    await waitFor('a second attempt', async () => (await h.task(after)).attempt > 1);
    expect((await h.task(demote.id)).status).toBe('holding');
    expect(backup.isLost).toBe(false);
    await backup.query('COMMIT');
    expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null });
    expect((await h.task(demote.id)).status).toBe('done');
    await subject.settled();
  });

  it.each([
    { title: 'in a hold', hold: true },
    { title: 'without one', hold: false },
  ])(
    'is terminated past its cooldown where it is any other session, and named, $title',
    async ({ hold }) => {
      const subject = await subjectOf(h, 1);
      const other = await subjectOf(h, 2);
      await waitUntilSynced(h.db);
      if (hold) await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
      const operator = await client('psql');
      await operator.begin(CHANGE, await changeOf(2, other.next));
      const after = await h.report({
        event: 'after_promote',
        groupid: 1,
        node: subject.next,
        cooldown: '3s',
      });
      const name = `pid ${operator.pid} (user postgres, application psql)`;
      expect(await reasonWith(after, name)).toMatch(/which is terminated at \d\d:\d\d:\d\d UTC/);
      await operator.waitUntilLost();
      const { msg } = await controller.logged('whom it terminated', (line) =>
        line.msg.startsWith(`terminated ${name}`),
      );
      expect(msg).toMatch(/had blocked the change of pg_dist_node for \d+\.\d s/);
      expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null, attempt: 1 });
      expect(await primaryAddress(h, 2)).toEqual(other.node);
      await subject.settled();
    },
  );

  it('is named with its gid where it is a prepared transaction', async () => {
    const subject = await subjectOf(h, 1);
    const { node, next } = subject;
    await waitUntilSynced(h.db);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node, timeout: '1min' });
    const stray = await client('shop');
    await stray.begin(BLOCK);
    await stray.query("PREPARE TRANSACTION 'stray'");
    const after = await h.report({ event: 'after_promote', groupid: 1, node: next });
    const reason = await reasonWith(
      after,
      "prepared transaction 'stray' (user postgres), prepared since ",
    );
    expect(reason).toContain('ROLLBACK PREPARED');
    expect((await h.task(demote.id)).status).toBe('holding');
    await stray.query("ROLLBACK PREPARED 'stray'");
    expect((await h.ended(after)).status).toBe('done');
    expect((await h.task(demote.id)).status).toBe('done');
    await subject.settled();
  });

  it('is terminated by Citus where the role of the controller may not', async () => {
    const subject = await subjectOf(h, 1);
    const other = await subjectOf(h, 2);
    await waitUntilSynced(h.db);
    await h.createLogin('plain');
    await h.db.query('GRANT mpp_controller TO plain');
    const { address } = h.cluster.coordinator;
    expect(
      await runCli(['bootstrap'], { DATABASE_URL: `postgresql://postgres@${address}/postgres` }),
    ).toMatchObject({ exitCode: 0 });
    expect(await controller.end()).toBe(0);
    controller = await h.startController({
      DATABASE_URL: `postgresql://plain@${address}/postgres`,
    });
    const operator = await client('psql');
    await operator.begin(CHANGE, await changeOf(2, other.next));
    const after = await h.report({ event: 'after_promote', groupid: 1, node: subject.next });
    await operator.waitUntilLost();
    // The operator is a superuser, whose session no other role may end.
    await controller.logged('whom Citus terminates', ({ msg }) =>
      msg.startsWith(`Citus terminates what this role may not, pid ${operator.pid} `),
    );
    expect(await h.ended(after)).toMatchObject({ status: 'done', reason: null, attempt: 1 });
    await subject.settled();
  });
});

/** Cancels the session of a hold that waits for another. */
const CANCEL_CHANGE = `
  SELECT pg_cancel_backend(a.pid)
  FROM pg_stat_activity AS a
  WHERE a.application_name LIKE 'mpp-controller group%' AND $1::integer = ANY (pg_blocking_pids(a.pid))`;
