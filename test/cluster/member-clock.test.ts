import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { writeMembers, type MemberReport } from '../../src/topology/members.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';

let server: ContractServer;
let database: ContractDatabase;

beforeAll(async () => {
  server = await ContractServer.start(inject('template'));
  database = await server.database('clock');
});

afterAll(() => server.stop());

/** As a server wrote it whose clock was ahead by 40 s. */
beforeEach(async () => {
  const { db } = database;
  await db.query('DELETE FROM mpp_members');
  await db.query("SET session_replication_role = 'replica'");
  await db.query(`
    INSERT INTO mpp_members (nodename, nodeport, source, groupid, role, state, since, reported_at)
    VALUES ('w1', 5432, 'probe', 1, 'primary', 'running',
            clock_timestamp() + interval '40 s', clock_timestamp() + interval '40 s')`);
  await db.query("SET session_replication_role = 'origin'");
});

function report(state: string): MemberReport {
  const address = { host: 'w1', port: 5432 };
  return { groupid: 1, address, role: 'primary', state, seenAt: performance.now() };
}

describe('a report of the future', () => {
  it.each(['running', 'unreachable'])('is overwritten by one that says %s', async (state) => {
    const { db } = database;
    await writeMembers(db, 'probe', [report(state)], 30_000);
    const { rows } = await db.query(
      'SELECT state, reported_at <= clock_timestamp() AS past FROM mpp_members',
    );
    expect(rows).toEqual([{ state, past: true }]);
  });

  it('leaves an older report of the past alone', async () => {
    const { db } = database;
    await writeMembers(db, 'probe', [report('running')], 30_000);
    const old = { ...report('unreachable'), seenAt: performance.now() - 10_000 };
    await writeMembers(db, 'probe', [old], 30_000);
    const { rows } = await db.query('SELECT state FROM mpp_members');
    expect(rows).toEqual([{ state: 'running' }]);
  });
});
