import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess, LogLine } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld, waitUntilTable } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const NOTE = 'UPDATE notes SET v = v + 1 WHERE id = $1';

/** Controllers that are no superusers: `keeper` owns the tables, `guest` does not. */
describe('what the role of a controller may do', () => {
  let h: Harness;
  let controller: ControllerProcess | undefined;
  let subject: Subject;
  let entry: Server;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    entry = h.cluster.group(2).primary;
    subject = await subjectOf(h, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [subject.key]);
    await h.db.query('INSERT INTO notes VALUES ($1, 0)', [subject.key]);
    await onAllNodes('CREATE ROLE app');
    for (const login of ['keeper', 'guest', 'shopper'])
      await onAllNodes(`CREATE ROLE ${login} LOGIN`);
    // With Citus a role cannot be made a member of one that the workers do not have: two statements.
    await onAllNodes('GRANT app TO keeper, shopper');
    for (const table of ['items', 'notes', 'lookup'])
      await onAllNodes(`ALTER TABLE ${table} OWNER TO app`);
    const bootstrap = await runCli(['bootstrap'], { DATABASE_URL: url('postgres') });
    expect(bootstrap).toMatchObject({ exitCode: 0, stderr: '' });
    for (const login of ['keeper', 'guest']) await h.db.query(`GRANT mpp_controller TO ${login}`);
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await waitUntilNothingHeld(h);
    await controller?.end();
  });
  afterAll(async () => h.stop());

  function url(user: string): string {
    return `postgresql://${user}@${h.cluster.coordinator.address}/postgres`;
  }

  /** Citus sends it to the workers by itself; the stand-in does not. */
  async function onAllNodes(statement: string): Promise<void> {
    if (h.cluster.hasCitus) await waitUntilSynced(h.db);
    await h.db.query(statement);
    if (h.cluster.hasCitus) return;
    for (const { primary } of h.cluster.workers) {
      await primary.withSession((db) => db.query(statement));
    }
  }

  async function startAs(user: string): Promise<ControllerProcess> {
    controller = await h.startController({ DATABASE_URL: url(user) });
    return controller;
  }

  async function through(server: Server, user = 'postgres'): Promise<Actor> {
    const actor = await Actor.connect(server, 'shop', user);
    actors.push(actor);
    return actor;
  }

  /** The controller marks itself present right after it says that it is active. */
  async function strategy(): Promise<string> {
    return waitFor('the controller to be present', async () => {
      const { rows } = await h.db.query<{ strategy: string }>(
        "SELECT strategy FROM mpp_status WHERE state = 'active'",
      );
      return rows[0]?.strategy;
    });
  }

  function demote(pause: 'writes' | 'all', cooldown = '20s'): Promise<string> {
    return h.report({ event: 'before_demote', groupid: 1, node: subject.node, pause, cooldown });
  }

  async function finish(): Promise<void> {
    const after = await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    expect(after.status).toBe('done');
    subject = await subjectOf(h, 1);
  }

  it('the owner of all tables locks shards and tables, on every node', async () => {
    await startAs('keeper');
    expect(await strategy()).toBe('shard-locks');
    const task = await h.acknowledged(await demote('all'));
    expect(task).toMatchObject({ status: 'holding', reason: null });
    const sent = [];
    for (const server of [h.cluster.coordinator, entry]) {
      sent.push(await (await through(server)).sendAndWait(UPDATE, [subject.key]));
    }
    await finish();
    for (const { answer } of sent) await answer;
  });

  it('the owner yields as well: a client in the middle finishes', async () => {
    const { log } = await startAs('keeper');
    const client = await through(h.cluster.coordinator, 'shopper');
    await client.begin(UPDATE, [subject.key]);
    const id = await demote('all');
    await waitUntilTable(h.cluster.coordinator, 'notes', { granted: true });
    await client.query(NOTE, [subject.key]);
    await client.query('COMMIT');
    expect(await h.acknowledged(id)).toMatchObject({ status: 'holding', reason: null });
    expect(ended(log)).toEqual([]);
    await finish();
  });

  it('the owner ends, after the cooldown, who is no superuser', async () => {
    const { log } = await startAs('keeper');
    const writer = await through(h.cluster.coordinator, 'shopper');
    await writer.begin(UPDATE, [subject.key]);
    const task = await h.acknowledged(await demote('writes', '1s'));
    expect(task).toMatchObject({ status: 'holding' });
    await writer.waitUntilLost();
    expect(ended(log)).toEqual([
      expect.objectContaining({ user: 'shopper', application: 'shop', sessionPid: writer.pid }),
    ]);
    await finish();
  });

  it('the owner may not end a superuser: the log says whom, and the hold fails at its timeout', async () => {
    const { log } = await startAs('keeper');
    const writer = await through(h.cluster.coordinator);
    await writer.begin(UPDATE, [subject.key]);
    const demote = { event: 'before_demote', groupid: 1, node: subject.node } as const;
    const id = await h.report({ ...demote, pause: 'writes', cooldown: '1s', timeout: '4s' });
    expect(['failed', 'expired']).toContain((await h.ended(id)).status);
    await writer.query('COMMIT');
    expect(ended(log)).toEqual([]);
    expect(log.filter(({ msg }) => msg.startsWith('this role may not end'))).toEqual([
      expect.objectContaining({ user: 'postgres', application: 'shop', sessionPid: writer.pid }),
    ]);
  });

  it('who does not own the tables pauses the node, on the coordinator alone, and says so', async () => {
    await startAs('guest');
    expect(await strategy()).toBe('pause-node');
    const task = await h.acknowledged(await demote('all'));
    expect(task.status).toBe('holding');
    expect(task.reason).toContain('only writes are paused: this role may not lock public.');
    expect(task.reason).toContain(`what enters through ${entry.address} does not wait: `);
    const said = controller?.log.findLast(({ msg }) => msg.includes('traffic waits'));
    expect(said).toMatchObject({
      msg: 'traffic waits; see its reason',
      reason: task.reason,
    });
    const sent = await (await through(h.cluster.coordinator)).sendAndWait(UPDATE, [subject.key]);
    await (
      await through(h.cluster.coordinator)
    ).query('SELECT FROM items WHERE id = $1', [subject.key]);
    await finish();
    await sent.answer;
  });

  it('a table of another owner that comes later: that hold falls back, and says so', async () => {
    await startAs('keeper');
    expect(await strategy()).toBe('shard-locks');
    await onAllNodes('ALTER TABLE notes OWNER TO postgres');
    const task = await h.acknowledged(await demote('writes'));
    expect(task.status).toBe('holding');
    expect(task.reason).toContain('held with pause-node: this role may not lock public.notes');
    await finish();
    await onAllNodes('ALTER TABLE notes OWNER TO app');
    expect(await h.acknowledged(await demote('writes'))).toMatchObject({
      status: 'holding',
      reason: null,
    });
    await finish();
  });
});

function ended(log: readonly LogLine[]): LogLine[] {
  return log.filter(({ msg }) => msg.startsWith('ended a session'));
}
