import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { runCli, type CommandResult } from '../kit/cli.js';
import { ContractServer, FINE, type ContractDatabase } from '../kit/contract.js';
import { Installation } from '../kit/installation.js';
import { waitFor } from '../kit/servers/index.js';

describe('a migration of a table that other sessions use', () => {
  let server: ContractServer;
  let database: ContractDatabase;
  let newer: Installation;
  let reader: Client;
  let databases = 0;
  let migration: string;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
  });
  afterAll(async () => server.stop());

  beforeEach(async () => {
    databases += 1;
    database = await server.citusDatabase(`used${databases}`);
    reader = await database.session();
    newer = await Installation.create();
    const number = await newer.upgrade('99.0.0', 'ALTER TABLE mpp_tasks ADD COLUMN future text');
    migration = `future${number}`;
    return () => newer.remove();
  });

  const migrate = (MPP_MIGRATE_TIMEOUT: string): Promise<CommandResult> => {
    const DATABASE_URL = `postgresql://postgres@${server.server.address}/used${databases}`;
    return runCli(['migrate'], { DATABASE_URL, MPP_MIGRATE_TIMEOUT }, newer.program);
  };

  /** Waits until the migration stands in the queue for a lock, or does not. */
  const waitUntilQueues = async (queues: boolean): Promise<void> => {
    await waitFor(
      queues ? 'the migration to wait for a lock' : 'the migration to leave the queue',
      async () => (await database.db.query(WAITING)).rows.length > 0 === queues,
      { intervalMs: 5 },
    );
  };

  const pidOf = async (session: Client): Promise<number> =>
    (await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')).rows[0]?.pid ?? 0;

  it('lets reports go on while it waits, and is applied once the reader ends', async () => {
    await reader.query('BEGIN; SELECT FROM mpp_tasks');
    const running = migrate('10min');

    const reporter = await database.session();
    // A report that waits longer than one try for its lock on the table fails.
    await reporter.query("SET lock_timeout = '2s'");
    const tries = { done: false };
    const reports = (async () => {
      let made = 0;
      for (; !tries.done; made += 1) await database.report(FINE, reporter);
      return made;
    })();
    for (let tried = 0; tried < 3; tried += 1) {
      await waitUntilQueues(true);
      await waitUntilQueues(false);
    }
    tries.done = true;
    expect(await reports).toBeGreaterThan(3);

    await reader.query('COMMIT');
    const { exitCode, stdout, stderr } = await running;
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(stdout).toContain(
      `waiting for pid ${await pidOf(reader)} (postgres, mpp-controller test`,
    );
    expect(stdout).toContain('on mpp_tasks');
    // At each try the same session is in the way; a report that began just before one may be as well, once.
    expect(stdout.match(/waiting for/g)?.length).toBeLessThanOrEqual(2);
    expect(stdout).toContain(`applied ${migration}`);
  });

  it('gives up after its time, names the session, and leaves nothing half done', async () => {
    await reader.query('BEGIN; SELECT FROM mpp_tasks');
    const { exitCode, stderr } = await migrate('1s');
    expect(exitCode).toBe(1);
    expect(stderr).toContain(`because of pid ${await pidOf(reader)} (postgres`);
    expect(stderr).toMatch(/idle in transaction, since .*on mpp_tasks/);
    expect(stderr).toContain('MPP_MIGRATE_TIMEOUT');
    expect((await database.db.query(MIGRATIONS)).rows).not.toContainEqual({ name: migration });
    await database.report(FINE);
    await reader.query('COMMIT');
    expect((await migrate('10min')).stdout).toContain(`applied ${migration}`);
  });

  it('names a prepared transaction, which has no session', async () => {
    await reader.query("BEGIN; SELECT FROM mpp_tasks; PREPARE TRANSACTION 'left behind'");
    const { exitCode, stderr } = await migrate('1s');
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/prepared transaction left behind \(since .*, mpp_tasks\)/);
    expect(stderr).toContain('ROLLBACK PREPARED');
    await reader.query("ROLLBACK PREPARED 'left behind'");
    expect((await migrate('10min')).exitCode).toBe(0);
  });

  it('names the groups that are held, by whom and since when', async () => {
    const id = await database.report({ ...FINE, groupid: 7 });
    await database.db.query(HOLDING, [id]);
    await database.report({ ...FINE, groupid: 8 });
    const { exitCode, stdout } = await migrate('10min');
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(
      /^group 7 is held since 2026-01-02 03:04:05 UTC by controller c1 \(pid 42 on db-host, version 1\.2\)$/m,
    );
    expect(stdout.match(/is held/g)).toHaveLength(1);
    expect(stdout.indexOf('is held')).toBeLessThan(stdout.indexOf(`applied ${migration}`));
    // Nothing to apply, so nobody stands down.
    expect((await migrate('10min')).stdout).not.toContain('is held');
  });

  it('gives way to a session that would wait for it in a circle', async () => {
    await newer.upgrade('99.0.1', 'LOCK TABLE mpp_members; LOCK TABLE mpp_task_log');
    await reader.query('BEGIN; LOCK TABLE mpp_task_log IN ACCESS SHARE MODE');
    const running = migrate('10min');
    await waitUntilQueues(true);
    // Waits for the migration, which waits for this session.
    await reader.query('LOCK TABLE mpp_members IN ACCESS SHARE MODE');
    await reader.query('COMMIT');
    expect(await running).toMatchObject({ exitCode: 0, stderr: '' });
  });
});

describe('a migration of a table that autovacuum works on', () => {
  it('is not kept waiting by it', async () => {
    // A vacuum that takes minutes, and begins at once.
    const server = await ContractServer.start(inject('template'), {
      autovacuum: true,
      autovacuum_naptime: '1s',
    });
    const newer = await Installation.create();
    try {
      const { db } = await server.citusDatabase('vacuumed');
      await db.query(SLOW_VACUUM);
      await db.query(
        `SET session_replication_role = 'replica'; ${DEAD_ROWS}; RESET session_replication_role`,
      );
      await waitFor('autovacuum', async () => (await db.query(VACUUMING)).rows.length > 0);
      await newer.upgrade('99.0.0', 'ALTER TABLE mpp_tasks ADD COLUMN future text');
      const DATABASE_URL = `postgresql://postgres@${server.server.address}/vacuumed`;
      const env = { DATABASE_URL, MPP_MIGRATE_TIMEOUT: '20s' };
      const result = await runCli(['migrate'], env, newer.program);
      expect(result).toMatchObject({ exitCode: 0, stderr: '' });
    } finally {
      await newer.remove();
      await server.stop();
    }
  });
});

/** Of this table alone, or the workers would be busy with catalogs. */
const SLOW_VACUUM = `
  ALTER TABLE mpp_tasks SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)`;

const DEAD_ROWS = `
  INSERT INTO mpp_tasks (event, groupid, nodename, timeout, cooldown, status, finished_at)
  SELECT 'suspect', 1, 'worker-1', '1 s', '1 s', 'done', now() FROM generate_series(1, 100000);
  DELETE FROM mpp_tasks WHERE id % 2 = 0`;

const VACUUMING = `
  SELECT FROM pg_stat_activity
  WHERE backend_type = 'autovacuum worker' AND datname = current_database() AND query ~ 'mpp_tasks'`;

const WAITING = `
  SELECT
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a USING (pid)
  WHERE NOT l.granted AND a.application_name = 'mpp-controller migrate' AND a.datname = current_database()`;

const HOLDING = `
  WITH controller AS (
    INSERT INTO mpp_controllers (id, host, pid, backend_pid, version) VALUES ('c1', 'db-host', 42, 1, '1.2')
  )
  UPDATE mpp_tasks SET status = 'holding', claimed_by = 'c1', held_at = '2026-01-02 03:04:05+00' WHERE id = $1`;

const MIGRATIONS = 'SELECT name FROM mpp_migrations_public.migrations';
