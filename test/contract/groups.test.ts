import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { keepLimits } from '../../src/tasks/sweep.js';
import {
  type ContractDatabase,
  ContractServer,
  refusal,
  SCHEMAS,
  sqlstateOf,
} from '../kit/contract.js';

const DENIED = '42501';

/** The ways to report for group $1. */
const REPORTS: Readonly<Record<string, string>> = {
  insert: "INSERT INTO mpp_tasks (event, groupid, nodename) VALUES ('suspect', $1, 'w')",
  several: `INSERT INTO mpp_tasks (event, groupid, nodename)
            SELECT 'suspect', g, 'w' FROM unnest(ARRAY[1, $1]) AS g`,
  mpp_submit: "SELECT mpp_submit('suspect', $1, 'w')",
  mpp_request:
    "CALL mpp_request('suspect', $1, 'w', timeout => '1 ms', id => NULL, status => NULL)",
  mpp_report: "SELECT mpp_report($1, 'w', 5432, 'primary')",
};

describe.each(SCHEMAS)('groups that a role may report for, in schema $schema', (place) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let operator: Client;
  let hook: Client;
  let db: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(place.database, place.schema);
    db = contract.db;
    await db.query('CREATE ROLE the_operator LOGIN IN ROLE mpp_operator');
    operator = await contract.session({ user: 'the_operator' });
  });
  beforeEach(async () => {
    await contract.clear();
    await db.query('DELETE FROM mpp_members; DELETE FROM mpp_group_grants');
    await db.query('DROP ROLE IF EXISTS hook, renamed, team, division');
    hook = await login('hook');
  });
  afterAll(async () => server.stop());

  async function login(user: string): Promise<Client> {
    await db.query(`CREATE ROLE ${user} LOGIN IN ROLE mpp_client`);
    return contract.session({ user });
  }

  async function grant(role: string, groupid: number): Promise<void> {
    await operator.query('SELECT mpp_grant_group($1, $2)', [role, groupid]);
  }

  /** Which of groups 1 to 3 a session may report for. */
  async function reportable(session: Client): Promise<number[]> {
    const groups: number[] = [];
    for (const groupid of [1, 2, 3]) {
      const reported = session.query("SELECT mpp_submit('suspect', $1, 'w')", [groupid]);
      if (
        await reported.then(
          () => true,
          () => false,
        )
      )
        groups.push(groupid);
    }
    return groups;
  }

  it('are all as long as the role is not named', async () => {
    expect(await reportable(hook)).toEqual([1, 2, 3]);
  });

  it.each(Object.entries(REPORTS))('are those it is granted, by %s', async (_, text) => {
    await grant('hook', 1);
    await hook.query(text, [1]);
    const error = await refusal(hook, { text, parameters: [2] });
    expect(error).toMatchObject({
      code: DENIED,
      message: 'role hook may not report for group 2: it may for 1 alone',
      hint: expect.stringContaining("mpp_grant_group('hook', 2)") as string,
    });
    await grant('hook', 2);
    await hook.query(text, [2]);
  });

  it('are those of every role that it is a member of, through others too', async () => {
    await db.query('CREATE ROLE division; CREATE ROLE team IN ROLE division; GRANT team TO hook');
    await grant('division', 3);
    expect(await reportable(hook)).toEqual([3]);
    await grant('team', 2);
    expect(await reportable(hook)).toEqual([2, 3]);
    await grant('hook', 1);
    expect(await reportable(hook)).toEqual([1, 2, 3]);
    await db.query('REVOKE team FROM hook');
    expect(await reportable(hook)).toEqual([1]);
  });

  it('hold for a member that does not inherit, and behind SET ROLE', async () => {
    await db.query('CREATE ROLE team; ALTER ROLE hook NOINHERIT; GRANT team TO hook');
    await grant('team', 2);
    await db.query('ALTER ROLE hook INHERIT');
    await hook.query('SET ROLE mpp_client');
    expect(await reportable(hook)).toEqual([2]);
  });

  it('are all for superusers and controllers, who cannot be named', async () => {
    await db.query('DROP ROLE IF EXISTS the_controller');
    await db.query('CREATE ROLE the_controller LOGIN IN ROLE mpp_controller');
    const controller = await contract.session({ user: 'the_controller' });
    await grant('hook', 1);
    await grant('mpp_client', 1);
    expect(await reportable(db)).toEqual([1, 2, 3]);
    expect(await reportable(controller)).toEqual([1, 2, 3]);
    for (const role of ['postgres', 'the_controller', 'mpp_controller']) {
      const text = 'SELECT mpp_grant_group($1, 1)';
      expect(await refusal(operator, { text, parameters: [role] })).toMatchObject({
        code: '22023',
        message: expect.stringContaining('every group') as string,
      });
    }
  });

  it('follow a role that is renamed', async () => {
    await grant('hook', 1);
    await db.query('ALTER ROLE hook RENAME TO renamed');
    expect(await reportable(hook)).toEqual([1]);
    await db.query('CREATE ROLE hook LOGIN IN ROLE mpp_client');
    expect(await reportable(await contract.session({ user: 'hook' }))).toEqual([1, 2, 3]);
    const revoke = "SELECT mpp_revoke_group('renamed', 1) AS revoked";
    expect((await operator.query(revoke)).rows).toEqual([{ revoked: true }]);
    expect(await reportable(hook)).toEqual([1, 2, 3]);
  });

  it('neither keep a role from being dropped nor go with it: one of its name has them', async () => {
    await grant('hook', 1);
    await db.query('DROP ROLE hook');
    expect(await reportable(await login('hook'))).toEqual([1]);
    await db.query('DROP ROLE hook');
    const revoke = "SELECT mpp_revoke_group('hook', 1) AS revoked";
    expect((await operator.query(revoke)).rows).toEqual([{ revoked: true }]);
    expect(await reportable(await login('hook'))).toEqual([1, 2, 3]);
  });

  it('stay those of the members of a role that is dropped', async () => {
    await db.query('CREATE ROLE division; CREATE ROLE team IN ROLE division');
    await grant('division', 3);
    // Became a member since; the controller notes it at its heartbeat.
    await db.query('GRANT team TO hook');
    await keepLimits(db, 'c', { maxTimeoutMs: 300_000, minCooldownMs: 1_000 });
    await db.query('DROP ROLE division');
    expect(await reportable(hook)).toEqual([3]);
    await operator.query("SELECT mpp_revoke_group('division', 3)");
    expect(await reportable(hook)).toEqual([1, 2, 3]);
  });

  it('do not hold for a role that may only administer the one that is named', async () => {
    const { rows } = await db.query<{ new: boolean }>(
      "SELECT current_setting('server_version_num')::integer >= 160000 AS new",
    );
    // Before PostgreSQL 16 who may administer a role is a member of it with all its rights.
    if (rows[0]?.new !== true) return;
    await db.query('CREATE ROLE team');
    await db.query('GRANT team TO hook WITH ADMIN TRUE, INHERIT FALSE, SET FALSE');
    await grant('team', 2);
    expect(await reportable(hook)).toEqual([1, 2, 3]);
  });

  it('keep a member of another group from being reported away', async () => {
    await db.query("SELECT mpp_report(2, 'w2', 5432, 'primary')");
    await grant('hook', 1);
    const error = await refusal(hook, {
      text: "SELECT mpp_report(1, 'w2', 5432, 'primary')",
      parameters: [],
    });
    expect(error.message).toBe('role hook may not report for group 2: it may for 1 alone');
    const { rows } = await db.query("SELECT groupid FROM mpp_members WHERE nodename = 'w2'");
    expect(rows).toEqual([{ groupid: 2 }]);
  });

  it('are granted and revoked by an operator alone, who learns what is wrong', async () => {
    for (const call of ["mpp_grant_group('hook', 1)", "mpp_revoke_group('hook', 1)"]) {
      expect(await sqlstateOf(hook, `SELECT ${call}`)).toBe(DENIED);
    }
    expect(await sqlstateOf(hook, 'TABLE mpp_group_grants')).toBe(DENIED);
    expect(await sqlstateOf(operator, 'DELETE FROM mpp_group_grants')).toBe(DENIED);
    const wrong = [
      ["mpp_grant_group('nemo', 1)", '42704'],
      ['mpp_grant_group(NULL, 1)', '42704'],
      ["mpp_grant_group('hook', -1)", '22023'],
      ["mpp_grant_group('hook', NULL)", '22023'],
      ["mpp_revoke_group('nemo', 1)", '42704'],
    ] as const;
    for (const [call, code] of wrong) {
      expect(await sqlstateOf(operator, `SELECT ${call}`), call).toBe(code);
    }
  });

  it('warn when the last one is taken away, because all are allowed then', async () => {
    await grant('hook', 1);
    await grant('hook', 1);
    await grant('hook', 2);
    const notices: (string | undefined)[] = [];
    operator.on('notice', ({ message }) => notices.push(message));
    await operator.query("SELECT mpp_revoke_group('hook', 1)");
    expect(notices).toEqual([]);
    const none = await operator.query("SELECT mpp_revoke_group('hook', 3) AS revoked");
    expect(none.rows).toEqual([{ revoked: false }]);
    await operator.query("SELECT mpp_revoke_group('hook', 2)");
    expect(notices).toEqual([
      'role hook is limited to no group any more: it may report for every group',
    ]);
  });

  it('are noted again without a wait while an operator has a grant open', async () => {
    await db.query('CREATE ROLE team; GRANT team TO hook');
    await grant('team', 1);
    await db.query('REVOKE team FROM hook');
    await operator.query('BEGIN');
    await operator.query("SELECT mpp_revoke_group('team', 1)");
    await keepLimits(db, 'c', { maxTimeoutMs: 300_000, minCooldownMs: 1_000 });
    await hook.query("SELECT mpp_submit('suspect', 2, 'w')");
    await operator.query('COMMIT');
  });
});
