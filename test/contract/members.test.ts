import type { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import {
  callStatement,
  ContractServer,
  refusal,
  SCHEMAS,
  type ContractDatabase,
  type TaskValues,
} from '../kit/contract.js';
import {
  announceSettings,
  pruneMembers,
  removeUnlisted,
  writeMembers,
  type MemberReport,
} from '../../src/topology/members.js';

const MEMBER: TaskValues = { groupid: 1, host: 'w1', port: 5432, role: 'primary' };

const REFUSED: readonly (readonly [string, TaskValues, string])[] = [
  ['no group', { groupid: null }, 'groupid'],
  ['a negative group', { groupid: -1 }, 'groupid'],
  ['no host', { host: '' }, 'nodename'],
  ['a host with a blank', { host: 'w 1' }, 'nodename'],
  ['a host with a control character', { host: 'w\u00011' }, 'nodename'],
  ['a name in brackets', { host: '[w1]' }, 'nodename'],
  ['a host of 256 bytes', { host: 'w'.repeat(256) }, 'nodename'],
  ['port 0', { port: 0 }, 'nodeport'],
  ['port 65536', { port: 65_536 }, 'nodeport'],
  ['an unknown role', { role: 'boss' }, 'role'],
  ['no role', { role: null }, 'role'],
  ['an empty state', { state: '' }, 'state'],
  ['a state with a line feed', { state: 'run\nning' }, 'state'],
  ['a state of 64 bytes', { state: 's'.repeat(64) }, 'state'],
  ['timeline 0', { timeline: 0 }, 'timeline'],
];

describe.each(SCHEMAS)('what is known of members, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    db = contract.db;
  });
  beforeEach(async () => {
    await db.query('DELETE FROM mpp_members');
  });
  afterAll(async () => server.stop());

  async function report(values: TaskValues, session = db): Promise<void> {
    const { text, parameters } = callStatement('SELECT mpp_report', { ...MEMBER, ...values });
    await session.query(text, parameters);
  }

  async function member(host = 'w1'): Promise<Record<string, unknown> | undefined> {
    const { rows } = await db.query<Record<string, unknown>>(
      `SELECT groupid, source, role, state, timeline, since::text, reported_at::text,
              reported_by::text, noloadbalance
       FROM mpp_members WHERE nodename = $1`,
      [host],
    );
    return rows[0];
  }

  const seen = (values: Partial<MemberReport> = {}): MemberReport => ({
    groupid: 1,
    address: { host: 'w1', port: 5432 },
    role: 'primary',
    state: 'running',
    seenAt: performance.now(),
    ...values,
  });

  it.each(REFUSED)('mpp_report refuses %s', async (_, values, column) => {
    const error = await refusal(db, callStatement('SELECT mpp_report', { ...MEMBER, ...values }));
    expect(error).toMatchObject({ code: '22023', column });
    expect(error.message.length).toBeGreaterThan(15);
    expect(await member()).toBeUndefined();
  });

  it.each([
    ['primary', 'primary'],
    ['master', 'primary'],
    ['Leader', 'primary'],
    ['secondary', 'secondary'],
    ['replica', 'secondary'],
    ['sync_standby', 'secondary'],
    ['standby_leader', 'secondary'],
  ])('mpp_report knows the role %s', async (word, role) => {
    await report({ role: word });
    expect(await member()).toMatchObject({ role, state: 'running', source: 'table' });
  });

  it('keeps one row for a node, and the time of its last change', async () => {
    await report({});
    const first = await member();
    expect(first).toMatchObject({ since: first?.['reported_at'], reported_by: 'postgres' });
    await report({ timeline: 2 });
    const second = await member();
    expect(second).toMatchObject({ since: first?.['since'], timeline: 2 });
    expect(second?.['reported_at']).not.toBe(first?.['reported_at']);
    await report({ state: 'crashed' });
    const third = await member();
    expect(third).toMatchObject({ state: 'crashed', since: third?.['reported_at'] });
    await report({ state: 'stopped', role: 'secondary' });
    expect(await member()).toMatchObject({ since: third?.['since'] });
    await report({ role: 'secondary' });
    const up = await member();
    expect(up).toMatchObject({ state: 'running', since: up?.['reported_at'] });
  });

  it('takes no report of the future', async () => {
    await db.query(
      `INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state, reported_at)
       VALUES (1, 'w1', 1, 'probe', 'primary', 'running', now() + interval '1 hour')`,
    );
    const { rows } = await db.query(
      'SELECT FROM mpp_members WHERE reported_at > clock_timestamp()',
    );
    expect(rows).toEqual([]);
  });

  it('names the login that reported', async () => {
    await db.query('CREATE ROLE the_hook LOGIN IN ROLE mpp_client').catch(() => undefined);
    await report({}, await contract.session({ user: 'the_hook' }));
    expect(await member()).toMatchObject({ reported_by: 'the_hook' });
  });

  describe('a source', () => {
    it('writes again only what has changed, or begins to age', async () => {
      expect(await writeMembers(db, 'probe', [seen()], 60_000)).toBe(true);
      const before = await member();
      expect(await writeMembers(db, 'probe', [seen()], 60_000)).toBe(false);
      expect(await member()).toEqual(before);
      expect(await writeMembers(db, 'probe', [seen({ timeline: 2 })], 60_000)).toBe(false);
      expect(await member()).toMatchObject({ timeline: 2 });
      expect(await writeMembers(db, 'probe', [seen({ role: 'secondary' })], 60_000)).toBe(true);
      const aged = await member();
      await writeMembers(db, 'probe', [seen({ role: 'secondary' })], 0);
      expect((await member())?.['reported_at']).not.toBe(aged?.['reported_at']);
    });

    it('confirms what it says as soon as anything else of the group has changed', async () => {
      await writeMembers(db, 'probe', [seen()], 60_000);
      const before = await member();
      await report({ host: 'w2' });
      await writeMembers(db, 'probe', [seen()], 60_000);
      expect((await member())?.['reported_at']).not.toBe(before?.['reported_at']);
    });

    it('never writes what it saw earlier over what it saw later', async () => {
      await writeMembers(db, 'probe', [seen()], 60_000);
      const earlier = { role: 'secondary', seenAt: performance.now() - 60_000 } as const;
      expect(await writeMembers(db, 'probe', [seen(earlier)], 0)).toBe(false);
      expect(await member()).toMatchObject({ role: 'primary' });
    });

    it('has rows of its own beside those of others', async () => {
      await report({ role: 'secondary' });
      await writeMembers(db, 'probe', [seen()], 60_000);
      await writeMembers(db, 'patroni', [seen()], 60_000);
      const { rows } = await db.query('SELECT source, role FROM mpp_members ORDER BY source');
      expect(rows).toEqual([
        { source: 'patroni', role: 'primary' },
        { source: 'probe', role: 'primary' },
        { source: 'table', role: 'secondary' },
      ]);
    });

    it('marks what it no longer lists as removed, in its own rows and its own group', async () => {
      const other = { host: 'w2', port: 5432 };
      await writeMembers(db, 'patroni', [seen(), seen({ address: other })], 60_000);
      await writeMembers(
        db,
        'patroni',
        [seen({ address: { host: 'w3', port: 1 }, groupid: 2 })],
        1,
      );
      await report({ host: 'w2' });
      expect(await removeUnlisted(db, 'patroni', 1, [seen().address], 60_000)).toBe(true);
      expect(await removeUnlisted(db, 'patroni', 1, [seen().address], 60_000)).toBe(false);
      const { rows } = await db.query(
        "SELECT nodename, source FROM mpp_members WHERE state = 'removed'",
      );
      expect(rows).toEqual([{ nodename: 'w2', source: 'patroni' }]);
    });

    it('forgets what is long gone', async () => {
      await writeMembers(db, 'probe', [seen(), seen({ address: { host: 'w2', port: 1 } })], 1_000);
      await writeMembers(db, 'probe', [seen({ address: { host: 'w2', port: 1 }, state: 'x' })], 0);
      await pruneMembers(db, 60_000);
      expect((await db.query('SELECT FROM mpp_members')).rows).toHaveLength(2);
      await pruneMembers(db, -60_000);
      expect((await db.query('SELECT FROM mpp_members')).rows).toHaveLength(0);
    });
  });

  describe('mpp_topology', () => {
    async function problems(): Promise<unknown[]> {
      const { rows } = await db.query<{ row: unknown[] }>(
        `SELECT json_build_array(nodename, source, stale, problem) AS row
         FROM mpp_topology ORDER BY nodename, source`,
      );
      return rows.map(({ row }) => row);
    }

    it('shows what is stale by the setting of the controller', async () => {
      await db.query('DELETE FROM mpp_controllers');
      await db.query(
        "INSERT INTO mpp_controllers (id, host, pid, backend_pid, version) VALUES ('c', 'h', 1, 1, '0')",
      );
      await report({});
      expect(await problems()).toEqual([['w1', 'table', false, null]]);
      await announceSettings(db, 'c', { memberTtlMs: 1, verify: 'on' });
      expect(await problems()).toEqual([['w1', 'table', true, 'not reported for 00:00:00']]);
      await announceSettings(db, 'c', { memberTtlMs: 60_000, verify: 'on' });
      expect(await problems()).toEqual([['w1', 'table', false, null]]);
    });

    it('shows what contradicts what', async () => {
      await report({});
      await report({ host: 'w2' });
      expect(await problems(), 'the newer claim wins').toEqual([
        ['w1', 'table', false, null],
        ['w2', 'table', false, null],
      ]);
      await report({});
      const claim = 'another node claims to be the primary, too';
      expect(await problems()).toEqual([
        ['w1', 'table', false, claim],
        ['w2', 'table', false, claim],
      ]);
      await report({ state: 'stopped' });
      await writeMembers(db, 'probe', [seen({ state: 'foreign', reason: 'so' })], 1_000);
      expect(await problems()).toEqual([
        ['w1', 'probe', false, 'so'],
        ['w1', 'table', false, null],
        ['w2', 'table', false, null],
      ]);
    });
  });
});
