import type { Client, Pool } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { createLogger } from '../../src/logger.js';
import { createPool } from '../../src/postgres/pool.js';
import { OtherDatabases, type HeldReport } from '../../src/databases/other-databases.js';
import { ContractServer, FINE, type ContractDatabase } from '../kit/contract.js';
import { waitFor } from '../kit/servers/index.js';

const NAMES = ['a', 'b', 'c'] as const;
/** Keeps copies from being made, and not from being looked at. */
const BLOCK_COPIES = 'LOCK TABLE mpp_tasks IN SHARE MODE';

/** The part of a controller that tells the databases b and c of what is reported in a. */
describe('reports that are forwarded to other databases', () => {
  let server: ContractServer;
  let db: Pool;
  let others: OtherDatabases;
  let inWay: Client | undefined;
  const databases: Record<string, ContractDatabase> = {};

  function database(name: (typeof NAMES)[number]): ContractDatabase {
    const found = databases[name];
    if (found === undefined) throw new Error(`no database ${name}`);
    return found;
  }

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    for (const name of NAMES) databases[name] = await server.database(name);
    db = createPool(
      { ...server.server.connection, database: 'a' },
      { schema: 'public', purpose: 'test', max: 4, onIdleError: () => undefined },
    );
  });
  beforeEach(async () => {
    for (const name of NAMES) await database(name).clear();
    await database('a').db.query('DELETE FROM mpp_databases');
    others = new OtherDatabases({
      db,
      settings: {
        connection: { ...server.server.connection, database: 'a' },
        schema: 'public',
        otherDatabases: ['b', 'c'],
        pollMs: 50,
      },
      logger: createLogger('silent'),
    });
    await others.start();
  });
  afterEach(async () => {
    await inWay?.query('ROLLBACK');
    await others.stop();
  });
  afterAll(async () => {
    await db.end();
    await server.stop();
  });

  async function begin(name: 'b' | 'c', statement: string): Promise<void> {
    inWay = await database(name).session();
    await inWay.query('BEGIN');
    await inWay.query(statement);
  }

  async function told(name: 'b' | 'c', id: string, timeoutMs = 20_000): Promise<void> {
    await waitFor(
      `${name} to get task ${id}`,
      async () => {
        const { rowCount } = await database(name).db.query(
          'SELECT FROM mpp_tasks WHERE origin_id = $1',
          [id],
        );
        return rowCount === 1;
      },
      { timeoutMs },
    );
  }

  async function held(groupid: number, cooldownMs: number): Promise<HeldReport> {
    const id = await database('a').report({ ...FINE, groupid });
    await database('a').db.query(
      `UPDATE mpp_tasks SET status = 'claimed', attempt = 1, claimed_by = 'me', claimed_at = now()
       WHERE id = $1`,
      [id],
    );
    return { id, attempt: 1, controller: 'me', groupid, cooldownMs, isHeld: () => true };
  }

  it('is not held up by one that is slow', async () => {
    await begin('b', 'LOCK TABLE mpp_tasks');
    await told('c', await database('a').report(FINE));
    // b takes until its statement_timeout of 5 s.
    await told('c', await database('a').report(FINE), 3_000);
  });

  it('is not held up by a group whose copy another session has locked, however much waits for it', async () => {
    const busy = await database('a').report({ ...FINE, event: 'after_promote', groupid: 1 });
    await told('c', busy);
    inWay = await database('c').session();
    await inWay.query('BEGIN');
    await inWay.query('SELECT FROM mpp_tasks WHERE origin_id = $1 FOR UPDATE', [busy]);
    await database('a').db.query('SELECT mpp_cancel($1)', [busy]);
    for (let count = 0; count < 101; count += 1) {
      await database('a').report({ ...FINE, event: 'after_promote', groupid: 1 });
    }
    await told('c', await database('a').report({ ...FINE, groupid: 2 }));
  });

  it('tells no fact since which another has come true', async () => {
    const ids: string[] = [];
    // As for one that comes back after both: it never sees the one without the other.
    await database('a').db.query('BEGIN');
    for (const nodename of ['earlier', 'later']) {
      const id = await database('a').report({ event: 'after_promote', groupid: 5, nodename });
      await database('a').db.query("UPDATE mpp_tasks SET status = 'done' WHERE id = $1", [id]);
      ids.push(id);
    }
    await database('a').db.query('COMMIT');
    await told('b', ids[1] ?? '');
    const { rows } = await database('b').db.query('SELECT nodename FROM mpp_tasks');
    expect(rows).toEqual([{ nodename: 'later' }]);
  });

  it('waits for the traffic of a group, though another group is refused', async () => {
    inWay = await database('b').session();
    await database('b').lockGroup(2, inWay);
    await database('b').db.query(
      'ALTER TABLE mpp_tasks ADD CONSTRAINT not_one CHECK (groupid <> 1)',
    );
    await told('c', await database('a').report({ ...FINE, groupid: 1 }));
    const report = await held(2, 10_000);
    const following = others.follow(report, new AbortController().signal);
    const other = await database('c').session();
    await database('c').lockGroup(2, other);
    for (const name of ['b', 'c'] as const) {
      await told(name, report.id);
      await database(name).db.query(
        `UPDATE mpp_tasks SET status = 'holding', held_at = now() WHERE groupid = 2`,
      );
    }
    expect(await following).toBeNull();
    await other.query('ROLLBACK');
    await database('b').db.query('ALTER TABLE mpp_tasks DROP CONSTRAINT not_one');
  });

  it('waits no longer than the report has left', async () => {
    await begin('b', BLOCK_COPIES);
    const report = await held(3, 3_600_000);
    await database('a').db.query(`UPDATE mpp_tasks SET deadline = clock_timestamp() + '1s'`);
    expect(await others.follow(report, new AbortController().signal)).toContain(
      'in database b: its locks could not be had in time',
    );
  });

  it('waits no longer than the traffic here does', async () => {
    await begin('b', BLOCK_COPIES);
    let looks = 0;
    const report = { ...(await held(4, 3_600_000)), isHeld: () => (looks += 1) < 3 };
    expect(await others.follow(report, new AbortController().signal)).toBeNull();
  });
});
