import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { forgetGone, markGone, markPresent } from '../../src/controller/presence.js';
import { checkMigrated } from '../../src/postgres/migrate.js';
import { claimTask } from '../../src/tasks/claim.js';
import { expire, takeBack } from '../../src/tasks/sweep.js';
import {
  addFollowUp,
  completeTasks,
  endTasks,
  markHolding,
  pruneTasks,
  requeueTasks,
} from '../../src/tasks/finish.js';
import {
  type ContractDatabase,
  ContractServer,
  FINE,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';

const DENIED = '42501';

const INSERT = "INSERT INTO mpp_tasks (event, groupid, nodename) VALUES ('suspect', 1, 'w')";
const SUBMIT = "SELECT mpp_submit('suspect', 1, 'w') AS id";
const REQUEST = `CALL mpp_request('suspect', 1, 'w', timeout => '1 ms', id => NULL, status => NULL)`;

/** What somebody tries, and who may. */
const TRIALS: readonly { text: string; may: readonly Login[] }[] = [
  { text: INSERT, may: ['client', 'operator', 'controller'] },
  { text: SUBMIT, may: ['client', 'operator', 'controller'] },
  { text: "SELECT mpp_report(1, 'w', 5432, 'primary')", may: ['client', 'operator', 'controller'] },
  { text: 'SELECT * FROM mpp_members', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_topology', may: ['operator', 'controller'] },
  { text: "DELETE FROM mpp_members WHERE nodename = 'w'", may: ['operator', 'controller'] },
  { text: "UPDATE mpp_members SET state = 'stopped'", may: ['controller'] },
  {
    text: `INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state)
           VALUES (1, 'v', 1, 'probe', 'primary', 'running')`,
    may: ['controller'],
  },
  { text: REQUEST, may: ['client', 'operator'] },
  { text: 'SELECT * FROM mpp_task_status(1)', may: ['client', 'operator', 'controller'] },
  {
    text: "SELECT mpp_ignore_replication_slot('s', 'logical', 'd', 'pgoutput')",
    may: ['client', 'operator', 'controller'],
  },
  { text: 'SELECT * FROM mpp_tasks', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_task_log', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_controllers', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_queue', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_holds', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_status', may: ['operator', 'controller'] },
  { text: 'SELECT * FROM mpp_databases', may: ['operator', 'controller'] },
  { text: "INSERT INTO mpp_databases VALUES ('d')", may: ['controller'] },
  { text: "DELETE FROM mpp_databases WHERE database = 'd'", may: ['controller'] },
  { text: 'SELECT * FROM mpp_outbox', may: ['operator', 'controller'] },
  { text: 'DELETE FROM mpp_outbox WHERE id = 0', may: ['controller'] },
  { text: "INSERT INTO mpp_outbox (task_id, database) VALUES (1, 'd')", may: [] },
  {
    text: `SELECT mpp_follow('d', '{"id": 1, "groupid": 1, "event": "suspect", "status": "done", "finished_at": "now"}')`,
    may: ['controller'],
  },
  { text: 'SELECT mpp_release(99)', may: ['operator'] },
  { text: 'SELECT mpp_rebuild_cache()', may: ['operator'] },
  { text: "UPDATE mpp_tasks SET reason = 'mine'", may: ['controller'] },
  { text: "UPDATE mpp_tasks SET event = 'suspect'", may: [] },
  { text: "UPDATE mpp_tasks SET nodename = 'mine'", may: [] },
  { text: "UPDATE mpp_tasks SET created_by = 'postgres'", may: [] },
  { text: 'DELETE FROM mpp_tasks WHERE id = 0', may: ['controller'] },
  { text: 'DELETE FROM mpp_task_log WHERE id = 0', may: ['controller'] },
  { text: "UPDATE mpp_task_log SET reason = 'mine'", may: [] },
  {
    text: `INSERT INTO mpp_task_log (task_id, groupid, event, status, attempt)
           VALUES (1, 1, 'suspect', 'done', 1)`,
    may: [],
  },
  { text: 'TRUNCATE mpp_tasks', may: [] },
  { text: 'TRUNCATE mpp_task_log', may: [] },
  { text: "SELECT setval('mpp_tasks_id_seq', 1)", may: [] },
  { text: "SELECT nextval('mpp_tasks_id_seq')", may: [] },
  { text: 'ALTER TABLE mpp_tasks DISABLE TRIGGER ALL', may: [] },
  { text: 'DROP VIEW mpp_queue', may: [] },
  { text: "SELECT mpp_check_address('h', 1, 'it')", may: [] },
];

/** Columns that only the controller writes. */
const CONTROLLERS_COLUMNS = [
  ['id', '7'],
  ['status', "'pending'"],
  ['reason', "'mine'"],
  ['nodeid', '1'],
  ['attempt', '1'],
  ['claimed_by', "'mine'"],
  ['not_before', 'now()'],
  ['created_by', "'postgres'"],
  ['created_at', "'2000-01-01'"],
  ['claimed_at', 'now()'],
  ['held_at', 'now()'],
  ['finished_at', 'now()'],
  ['deadline', 'now()'],
  ['origin_database', "'mine'"],
  ['origin_id', '1'],
];

const LOGINS = ['nobody', 'client', 'operator', 'controller'] as const;
type Login = (typeof LOGINS)[number];

describe.each(SCHEMAS)('roles, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  const sessions = new Map<Login, Client>();
  const as = (login: Login): Client => {
    const session = sessions.get(login);
    if (session === undefined) throw new Error(`${login} has no session`);
    return session;
  };

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    for (const login of LOGINS) {
      const membership = login === 'nobody' ? '' : ` IN ROLE mpp_${login}`;
      await contract.db.query(`CREATE ROLE the_${login} LOGIN${membership}`);
      sessions.set(login, await contract.session({ user: `the_${login}` }));
    }
  });
  beforeEach(async () => contract.clear());
  afterAll(async () => server.stop());

  it('are made without a login, and with no right over others', async () => {
    const { rows } = await contract.db.query(`
      SELECT rolname FROM pg_roles
      WHERE rolname IN ('mpp_client', 'mpp_operator', 'mpp_controller')
        AND NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication)`);
    expect(rows).toHaveLength(3);
  });

  describe.each(LOGINS)('a member of mpp_%s', (login) => {
    it.each(TRIALS.filter(({ may }) => may.includes(login)))('may $text', async ({ text }) => {
      await as(login).query(text);
    });

    it.each(TRIALS.filter(({ may }) => !may.includes(login)))('may not $text', async ({ text }) => {
      const state = await sqlstateOf(as(login), text);
      // Without USAGE on the schema a name is not even found.
      const unseen = ['42P01', '42883', '3F000'];
      expect(login === 'nobody' ? [DENIED, ...unseen] : [DENIED]).toContain(state);
    });
  });

  it.each(CONTROLLERS_COLUMNS)('a client may not write %s', async (column, value) => {
    const override = column === 'id' ? 'OVERRIDING SYSTEM VALUE' : '';
    const text = `INSERT INTO mpp_tasks (event, groupid, nodename, ${column}) ${override}
                  VALUES ('suspect', 1, 'w', ${value})`;
    expect(await sqlstateOf(as('client'), text)).toBe(DENIED);
    expect(await sqlstateOf(as('operator'), text)).toBe(DENIED);
  });

  it('names the login that reported, behind every role and function', async () => {
    await as('client').query(INSERT);
    await as('client').query(SUBMIT);
    await as('operator').query('SET ROLE mpp_operator');
    await as('operator').query(SUBMIT);
    await as('operator').query('RESET ROLE');
    const { rows } = await contract.db.query(
      'SELECT created_by, array_agg(DISTINCT logged_by::text) AS logged_by FROM mpp_tasks ' +
        'JOIN mpp_task_log ON task_id = mpp_tasks.id GROUP BY mpp_tasks.id ORDER BY mpp_tasks.id',
    );
    expect(rows).toEqual([
      { created_by: 'the_client', logged_by: ['the_client'] },
      { created_by: 'the_client', logged_by: ['the_client'] },
      { created_by: 'the_operator', logged_by: ['the_operator'] },
    ]);
  });

  it('an operator cancels and releases, and is named', async () => {
    const id = await contract.report(FINE);
    await as('operator').query('SELECT mpp_cancel($1)', [id]);
    expect(await contract.status(id)).toEqual({
      status: 'cancelled',
      reason: 'cancelled by the_operator',
    });
    expect(await sqlstateOf(as('client'), 'SELECT mpp_cancel($1)', [id])).toBe(DENIED);
  });

  it('mpp_controller is all that a controller needs of this schema', async () => {
    const db = as('controller');
    await checkMigrated(db, schema);
    await markPresent(db, { id: 'c', version: '0', strategy: 's', maxHolds: Infinity });
    await forgetGone(db);
    const scope = { controller: 'c', busy: [], held: [], open: true };
    const attempt = (id: string, attempt: number) => [{ controller: 'c', id, attempt }] as const;

    const demote = await contract.report({ ...FINE, timeout: '1h' });
    await claimTask(db, scope);
    await requeueTasks(db, attempt(demote, 1), 'once more', 0);
    await claimTask(db, scope);
    await markHolding(db, attempt(demote, 2)[0], 7, null);
    const fact = await contract.report({ ...FINE, event: 'after_promote', secondaries: ['w:1'] });
    const claimed = await claimTask(db, { ...scope, held: [1] });
    expect(claimed?.task.id).toBe(fact);
    await db.query('BEGIN');
    if (claimed) await addFollowUp(db, claimed.task);
    const both = [...attempt(demote, 2), ...attempt(fact, 1)];
    expect(await completeTasks(db, both, { nodeid: 7, reason: null })).toBe(true);
    await db.query('COMMIT');
    const rest = (await claimTask(db, scope))?.task;
    await endTasks(db, attempt(rest?.id ?? '', 1), { status: 'discarded', reason: 'so' });
    await expire(db);
    await takeBack(db, { busy: [], held: [] });
    expect(await pruneTasks(db, -60_000)).toBe(3);
    await markGone(db, 'c');
    const { rows } = await contract.db.query('SELECT FROM mpp_task_log');
    expect(rows).toHaveLength(0);
  });

  it('a role that is in none of the roles learns which one a controller wants', async () => {
    await expect(checkMigrated(as('nobody'), schema)).rejects.toMatchObject({
      code: 'NO_PRIVILEGE',
      message: expect.stringContaining('mpp_controller') as string,
    });
  });
});
