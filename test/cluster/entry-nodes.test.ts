import type { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { holdLocks, waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness, type TaskRow } from '../kit/harness.js';
import { waitFor, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

/** Group 1 is held; statements enter through the coordinator and groups 2 and 3. */
describe('entry nodes of a hold', () => {
  let h: Harness;
  let controller: ControllerProcess;
  let subject: Subject;
  let healthy: Server;
  let other: Server;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 3, standbys: false });
    [healthy, other] = [h.cluster.group(2).primary, h.cluster.group(3).primary];
    subject = await subjectOf(h, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [subject.key]);
  });
  beforeEach(async () => {
    controller = await h.startController();
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
    await other.start();
    await waitUntilSynced(h.db);
    await waitUntilNothingHeld(h);
    await controller.end();
  });
  afterAll(async () => h.stop());

  async function through(server: Server): Promise<Actor> {
    const actor = await Actor.connect(server);
    actors.push(actor);
    return actor;
  }

  function demote(): Promise<string> {
    return h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      pause: 'all',
      cooldown: '20s',
    });
  }

  async function held(id: string): Promise<TaskRow> {
    const task = await h.acknowledged(id);
    expect(task.status).toBe('holding');
    return task;
  }

  async function promote(node = subject.next): Promise<void> {
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');
    subject = await subjectOf(h, 1);
  }

  function warned(text: string): boolean {
    return controller.log.some(({ level, msg }) => level === 'warn' && msg.includes(text));
  }

  /** With all nodes there: reads through each of them wait, and go on after the commit. */
  async function expectWholeHold(): Promise<void> {
    const task = await held(await demote());
    expect(task.reason).toBeNull();
    const servers = [h.cluster.coordinator, healthy, other];
    const clients = await Promise.all(servers.map(through));
    const sent = [];
    for (const client of clients) sent.push(await client.sendAndWait(UPDATE, [subject.key]));
    await promote();
    await Promise.all(sent.map(({ answer }) => answer));
  }

  it('that are all there wait, and are released once they know the new row', async () => {
    await held(await demote());
    const client = await through(healthy);
    const read = await client.sendAndWait('SELECT FROM items WHERE id = $1', [subject.key]);
    // Its own copy of the row is what the statement goes by once it may.
    const rows = read.answer.then(() => healthy.withSession((db) => h.nodes(1, db)));
    await promote();
    expect(await rows).toEqual(await h.nodes(1));
    await waitUntilNothingHeld(h);
    expect(warned('nodes have not got the metadata')).toBe(false);
  });

  it('are released after a while when one of them cannot be sent the new row', async () => {
    await held(await demote());
    const sent = await (await through(healthy)).sendAndWait(UPDATE, [subject.key]);
    const blocker = await through(other);
    await blocker.begin('LOCK TABLE pg_dist_node IN SHARE MODE');
    await promote();
    await sent.answer;
    await waitFor('the log to say so', () =>
      Promise.resolve(warned('nodes have not got the metadata')),
    );
    await blocker.query('ROLLBACK');
  });

  it('one that is down is named, and delays neither the hold nor the traffic after it', async () => {
    await other.stop('immediate');
    const task = await held(await demote());
    expect(task.reason).toContain(`what enters through ${other.address} does not wait: `);
    const client = await through(healthy);
    const sent = await client.sendAndWait(UPDATE, [subject.key]);
    await promote();
    await sent.answer;
    await waitUntilNothingHeld(h);
    // The others are not kept until the bound because of it.
    expect(warned('nodes have not got the metadata')).toBe(false);

    await other.start();
    await waitUntilSynced(h.db);
    await expectWholeHold();
  });

  it('one that refuses our login is named, and the hold goes on without it', async () => {
    for (const server of [healthy, other])
      await server.withSession(makeWatcher(server === healthy));
    await controller.end();
    const { port } = h.cluster.coordinator;
    controller = await h.startController({
      MPP_NODE_URL: `postgres://watcher@any:${port}/postgres`,
      // The primary knows no watcher either.
      MPP_VERIFY: 'off',
    });
    const task = await held(await demote());
    expect(task.reason).toContain(`what enters through ${other.address} does not wait: `);
    expect(task.reason).toContain('watcher');
    expect(task.reason).not.toContain(healthy.address);
    const sent = await (await through(healthy)).sendAndWait(UPDATE, [subject.key]);
    await (await through(other)).query('SELECT FROM items WHERE id = $1', [subject.key]);
    await promote();
    await sent.answer;
  });

  it('one that dies while held is named in the log, and the hold stays', async () => {
    const id = await demote();
    await held(id);
    const client = await through(healthy);
    const sent = await client.sendAndWait(UPDATE, [subject.key]);
    await other.stop('immediate');
    const lost = await controller.logged('what was lost', ({ msg }) =>
      msg.startsWith('locks of a hold that were lost could not be taken again'),
    );
    expect(lost['server']).toBe(other.address);
    const task = await h.task(id);
    expect(task).toMatchObject({ status: 'holding', attempt: 1 });
    await waitFor('the reason to say so', async () =>
      (await h.task(id)).reason?.startsWith(`what enters through ${other.address} does not wait: `),
    );
    expect(await h.holds()).toBe(1);
    await promote();
    await sent.answer;
    await waitUntilNothingHeld(h);
    expect(warned('nodes have not got the metadata')).toBe(false);

    await other.start();
    await waitUntilSynced(h.db);
    await expectWholeHold();
  });

  it('one that dies while the hold drains is left out', async () => {
    const client = await through(other);
    await client.begin(UPDATE, [subject.key]);
    const id = await demote();
    await client.isInTheWay();
    await other.stop('immediate');
    const task = await held(id);
    expect(task.reason).toContain(`what enters through ${other.address} does not wait: `);
    const sent = await (await through(healthy)).sendAndWait(UPDATE, [subject.key]);
    await h.db.query('SELECT mpp_release(1)');
    await sent.answer;
  });

  it('what the sessions of a hold had locked on another node is locked again when they are ended', async () => {
    const id = await demote();
    await held(id);
    const pids = await healthy.withSession(async (db) => {
      const locks = await holdLocks(db);
      const ending = locks.map(({ pid }) => pid);
      await db.query('SELECT pg_terminate_backend(unnest($1::integer[]), 5000)', [ending]);
      return ending;
    });
    expect(pids.length).toBeGreaterThan(0);
    await controller.logged(
      'that it is whole again',
      ({ msg }) => msg === 'traffic is paused again',
    );
    expect(await h.task(id)).toMatchObject({ status: 'holding', attempt: 1, reason: null });
    const sent = await (await through(healthy)).sendAndWait(UPDATE, [subject.key]);
    await promote();
    await sent.answer;
    await waitUntilNothingHeld(h);
    await expectWholeHold();
  });

  it('are taken afresh when the controller comes back to a hold', async () => {
    const id = await demote();
    await held(id);
    await controller.end('SIGKILL');
    controller = await h.startController();
    await waitFor('the hold to be taken again', async () => {
      const task = await h.task(id);
      return task.status === 'holding' && task.attempt > 1;
    });
    expect((await h.task(id)).reason).toBeNull();
    const sent = await (await through(other)).sendAndWait(UPDATE, [subject.key]);
    await promote();
    await sent.answer;
  });
});

/** A superuser as whom the controller is to log in to nodes; not on every node is it allowed to. */
function makeWatcher(mayLogIn: boolean): (db: Client) => Promise<void> {
  return async (db) => {
    await db.query("SELECT set_config('citus.enable_ddl_propagation', 'off', false)");
    await db.query(`CREATE ROLE watcher SUPERUSER ${mayLogIn ? 'LOGIN' : 'NOLOGIN'}`);
  };
}
