import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { Actor } from '../kit/faults/actor.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const SELECT = 'SELECT FROM items WHERE id = $1';

/** Each changes what a statement means, returns, sees or is allowed, for a session that does not set it itself. */
const HOSTILE: Readonly<Record<string, string>> = {
  array_nulls: 'off',
  bytea_output: 'escape',
  datestyle: 'SQL, DMY',
  default_transaction_deferrable: 'on',
  default_transaction_isolation: 'serializable',
  extra_float_digits: '-15',
  intervalstyle: 'iso_8601',
  plan_cache_mode: 'force_generic_plan',
  quote_all_identifiers: 'on',
  row_security: 'off',
  search_path: 'nowhere',
  standard_conforming_strings: 'off',
  timezone: 'Pacific/Chatham',
  transform_null_equals: 'on',
};

describe('settings of a controller that runs', () => {
  let h: Harness;
  let subject: Subject;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 1 });
    subject = await subjectOf(h, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [subject.key]);
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
    subject = await subjectOf(h, 1);
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await waitUntilNothingHeld(h);
  });
  afterAll(async () => h.stop());

  async function client(): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    return actor;
  }

  it.each([
    { pause: 'none', waits: [] },
    { pause: 'writes', waits: [UPDATE] },
    { pause: 'all', waits: [UPDATE, SELECT] },
    { pause: 'auto', waits: [UPDATE, SELECT] },
  ])('MPP_PAUSE=$pause says what waits while a group is held', async ({ pause, waits }) => {
    const controller = await h.startController({ MPP_PAUSE: pause });
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(demote.status).toBe('holding');
    const answers: Promise<unknown>[] = [];
    for (const statement of [UPDATE, SELECT]) {
      const actor = await client();
      if (waits.includes(statement)) {
        answers.push((await actor.sendAndWait(statement, [subject.key])).answer);
      } else {
        await actor.query(statement, [subject.key]);
      }
    }
    const promote = await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    expect(promote.status).toBe('done');
    await Promise.all(answers);
    expect(await controller.end()).toBe(0);
  });

  it('a task that says what waits comes before MPP_PAUSE', async () => {
    const controller = await h.startController({ MPP_PAUSE: 'all' });
    const demote = {
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      pause: 'writes',
    } as const;
    expect((await h.request(demote)).status).toBe('holding');
    await (await client()).query(SELECT, [subject.key]);
    const waiting = await (await client()).sendAndWait(UPDATE, [subject.key]);
    await h.request({ event: 'after_promote', groupid: 1, node: subject.node });
    await waiting.answer;
    expect(await controller.end()).toBe(0);
  });

  it('what a role and its database set does not change a switchover', async () => {
    await h.createLogin('odd');
    const { host, port } = h.cluster.coordinator;
    await h.db.query('ALTER ROLE odd SUPERUSER');
    for (const server of [
      h.cluster.coordinator,
      ...h.cluster.workers.map(({ primary }) => primary),
    ]) {
      await server.withSession(async (session) => {
        await session.query('SET citus.enable_ddl_propagation = off');
        await session.query('ALTER ROLE odd SUPERUSER');
        for (const [name, value] of Object.entries(HOSTILE)) {
          await session.query(`ALTER ROLE odd SET ${name} = '${value}'`);
        }
        // Without triggers no report would wake a controller, nor be checked.
        await session.query(
          "ALTER ROLE odd IN DATABASE postgres SET session_replication_role = 'replica'",
        );
      });
    }
    const controller = await h.startController({
      DATABASE_URL: `postgres://odd@${host}:${port}/postgres`,
      MPP_PAUSE: 'all',
      MPP_TOPOLOGY: 'table,probe',
    });
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    const waiting = await (await client()).sendAndWait(UPDATE, [subject.key]);
    // A standby that is asked in a serializable transaction refuses to answer.
    const { standby } = h.cluster.group(1);
    const secondary = `${standby.host}:${standby.port}`;
    const after = { event: 'after_promote', groupid: 1, node: subject.next } as const;
    const promote = await h.request({ ...after, secondaries: [secondary] });
    expect(promote.status).toBe('done');
    await waiting.answer;
    const nodes = await waitFor('the secondary to be added', async () => {
      const rows = await h.nodes(1);
      return rows.length === 2 && rows;
    });
    expect(nodes.map(({ role, node }) => [role, node])).toEqual([
      ['primary', `${subject.next.host}:${subject.next.port}`],
      ['secondary', secondary],
    ]);
    await waitFor('the probe to find the standby up', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_members WHERE source = 'probe' AND nodeport = $1 AND role = 'secondary' AND mpp_is_up(state)",
        [standby.port],
      );
      return rowCount !== 0;
    });
    expect(await h.history(demote.id)).toEqual(['pending', 'claimed', 'holding', 'done']);
    expect(controller.log.filter(({ level }) => level === 'error')).toEqual([]);
    expect(await controller.end()).toBe(0);
  });
});
