import fc from 'fast-check';
import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { loadSettings } from '../../src/config/settings.js';
import { isHost, plainHost } from '../../src/address.js';
import { readAnswer } from '../../src/topology/patroni.js';
import {
  callStatement,
  ContractServer,
  FINE,
  insertStatement,
  refusal,
  SCHEMAS,
  type ContractDatabase,
  type Statement,
} from '../kit/contract.js';
import { BRACKETED, HOSTS, NO_HOSTS } from '../kit/host-cases.js';

const bracketed = (host: string): string => (host.includes(':') ? `[${host}]` : host);

/** The ways in, where a host is a column or an argument. */
const ENTRANCES: Readonly<Record<string, (host: string) => Statement>> = {
  'INSERT into mpp_tasks': (host) => insertStatement({ ...FINE, nodename: host }),
  mpp_submit: (host) => callStatement('SELECT mpp_submit', { ...FINE, nodename: host }),
  mpp_request: (host) =>
    callStatement(
      'CALL mpp_request',
      { ...FINE, nodename: host, timeout: '1 ms' },
      ', id => NULL, status => NULL',
    ),
  'secondaries of a task': (host) =>
    insertStatement({ ...FINE, secondaries: [`${bracketed(host)}:5433`] }),
  mpp_report: (host) => callStatement('SELECT mpp_report', { ...MEMBER, host }),
  'INSERT into mpp_members': (host) => ({
    text: `INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state)
           VALUES (1, $1, 5432, 'probe', 'primary', 'running')
           ON CONFLICT (nodename, nodeport, source) DO UPDATE SET state = 'running'`,
    parameters: [host],
  }),
  'UPDATE of mpp_members': (host) => ({
    text: "UPDATE mpp_members SET nodename = $1, nodeport = 1 WHERE nodename = 'changes'",
    parameters: [host],
  }),
};
const MEMBER = { groupid: 1, port: 5432, role: 'primary' };

describe('a setting or an answer of Patroni', () => {
  const settings = (value: string): string | undefined =>
    loadSettings({ MPP_COORDINATOR_HOST: value, MPP_LOCAL_HOSTNAME: value }).coordinatorHost;
  const patroni = (host: string) =>
    readAnswer({ members: [{ role: 'leader', state: 'running', host }] }, 1, 0);

  it.each(HOSTS)('takes %j', (host) => {
    expect(settings(host)).toBe(host);
    expect(loadSettings({ MPP_LOCAL_HOSTNAME: host }).localHostname).toBe(host);
    expect(patroni(host)).toMatchObject({ complete: true, reports: [{ address: { host } }] });
  });

  it.each(BRACKETED)('takes %j as %j', (written, host) => {
    expect(settings(written)).toBe(host);
    expect(patroni(written)).toMatchObject({ complete: true, reports: [{ address: { host } }] });
  });

  it.each(NO_HOSTS)('refuses %j', (host) => {
    expect(patroni(host)).toEqual({ complete: false, reports: [] });
    // An empty variable is one that is not set.
    if (host === '') return;
    for (const name of ['MPP_COORDINATOR_HOST', 'MPP_LOCAL_HOSTNAME']) {
      expect(() => loadSettings({ [name]: host })).toThrow(name);
    }
  });
});

describe.each(SCHEMAS)('a host that is reported, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    db = contract.db;
    await db.query(
      `INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state)
       VALUES (1, 'changes', 1, 'probe', 'secondary', 'running')`,
    );
  });
  afterAll(async () => server.stop());

  async function verdicts(hosts: readonly string[]): Promise<(readonly [string, boolean])[]> {
    const { rows } = await db.query<{ host: string; taken: boolean }>(
      `SELECT h.host, @mpp.mpp_is_host(@mpp.mpp_plain_host(h.host)) AS taken
       FROM unnest($1::text[]) WITH ORDINALITY AS h (host, place) ORDER BY h.place`,
      [hosts],
    );
    return rows.map(({ host, taken }) => [host, taken]);
  }

  const judged = (hosts: readonly string[], taken: (host: string) => boolean) =>
    hosts.map((host) => [host, taken(host)]);

  it('is judged by the database and by the program in the same way', async () => {
    const all = [...HOSTS, ...BRACKETED.map(([written]) => written), ...NO_HOSTS];
    expect(await verdicts(all)).toEqual(judged(all, (host) => !NO_HOSTS.includes(host)));
    expect(await verdicts(all)).toEqual(judged(all, (host) => isHost(plainHost(host))));
  });

  it('is judged in the same way by both, whatever it is made of', async () => {
    const parts = [
      '0',
      '1',
      '255',
      '256',
      'a',
      'fe80',
      'g',
      ':',
      '::',
      '.',
      '%',
      '[',
      ']',
      '/',
      '-',
    ];
    const part = fc.constantFrom(...parts, '_', ' ', 'é', '\n', '12345', 'w'.repeat(62));
    const made = fc.array(part, { maxLength: 12 }).map((some) => some.join(''));
    const addresses = fc.oneof(fc.ipV4(), fc.ipV4Extended(), fc.ipV6(), fc.domain(), made);
    const hosts = fc.sample(addresses, 5_000).filter((host) => !host.includes('\0'));
    expect(await verdicts(hosts)).toEqual(judged(hosts, (host) => isHost(plainHost(host))));
  });

  describe.each(Object.entries(ENTRANCES))('by %s', (_, statement) => {
    it('is refused with a sentence when it can never be one', async () => {
      for (const host of NO_HOSTS) {
        const error = await refusal(db, statement(host));
        expect(error, host).toMatchObject({
          code: '22023',
          column: expect.stringMatching(/^(nodename|secondaries)$/) as string,
          hint: expect.stringMatching(/\.$/) as string,
        });
      }
    });
  });

  it.each(HOSTS)('is taken as %j', async (host) => {
    for (const [name, statement] of Object.entries(ENTRANCES)) {
      const { text, parameters } = statement(host);
      await expect(db.query(text, parameters), name).resolves.toBeDefined();
    }
    const { rows } = await db.query(
      `SELECT nodename FROM mpp_tasks WHERE nodename = $1
       UNION SELECT nodename FROM mpp_members WHERE nodename = $1 AND source = 'table'`,
      [host],
    );
    expect(rows).toEqual([{ nodename: host }]);
  });

  it.each(BRACKETED)('is taken as %j and stored as %j', async (written, host) => {
    const id = await contract.report({ ...FINE, nodename: written });
    const task = await db.query('SELECT nodename FROM mpp_tasks WHERE id = $1', [id]);
    expect(task.rows).toEqual([{ nodename: host }]);
    for (const one of [written, host]) {
      await db.query("SELECT mpp_report(9, $1, 5432, 'primary')", [one]);
    }
    const member = await db.query('SELECT nodename FROM mpp_members WHERE groupid = 9');
    expect(member.rows).toEqual([{ nodename: host }]);
    await db.query('DELETE FROM mpp_members WHERE groupid = 9');
    const self = insertStatement({ ...FINE, nodename: written, secondaries: [`[${host}]:5432`] });
    expect((await refusal(db, self)).message).toContain('the node itself');
  });

  it('has at most 64 secondaries beside it', async () => {
    const nodes = Array.from({ length: 65 }, (_, index) => `worker-${index}:5433`);
    const error = await refusal(db, insertStatement({ ...FINE, secondaries: nodes }));
    expect(error).toMatchObject({ code: '22023', column: 'secondaries' });
    expect(error.message).toContain('at most 64');
    await contract.report({ ...FINE, secondaries: nodes.slice(1) });
  });
});
