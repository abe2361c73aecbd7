import type pg from 'pg';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pino from 'pino';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { createPool } from '../../src/postgres/pool.js';
import { NODES_QUERY } from '../../src/mpp/citus/nodes.js';
import { Patroni, type Access } from '../../src/topology/patroni.js';
import { ContractServer, type ContractDatabase } from '../kit/contract.js';
import {
  RestServer,
  type PatroniMember,
  type RestServerOptions,
} from '../kit/patroni/rest-server.js';
import { run } from '../kit/servers/processes.js';
import { waitFor } from '../kit/servers/index.js';

const LEADER: PatroniMember = { role: 'leader', state: 'running', host: 'a', port: 1, timeline: 2 };
const REPLICA: PatroniMember = { role: 'replica', state: 'streaming', host: 'b', port: 1 };

/** The source alone, against servers that answer like Patroni. */
describe('the source patroni', () => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let pool: pg.Pool;
  const servers: RestServer[] = [];
  const sources: Patroni[] = [];
  let lines: string[] = [];

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database('patroni');
    const connection = { ...server.server.connection, database: 'patroni' };
    const onIdleError = (): void => undefined;
    pool = createPool(connection, { schema: 'public', purpose: 'test', max: 4, onIdleError });
  });
  afterEach(async () => {
    await Promise.all(sources.splice(0).map((source) => source.stop()));
    await Promise.all(servers.splice(0).map((rest) => rest.stop()));
    await contract.db.query('DELETE FROM mpp_members');
    lines = [];
  });
  afterAll(async () => {
    await pool.end();
    await server.stop();
  });

  async function rest(members?: readonly PatroniMember[], options: RestServerOptions = {}) {
    const started = await RestServer.start(options);
    servers.push(started);
    if (members !== undefined) started.members = members;
    return started;
  }

  function start(urls: readonly string[], access: Partial<Access> = {}): Patroni {
    const source = new Patroni({
      db: pool,
      nodesQuery: NODES_QUERY,
      ttlMs: 60_000,
      signal: new AbortController().signal,
      logger: pino({}, { write: (line: string) => lines.push(line) }),
      onChange: () => undefined,
      groups: [{ groupid: 1, urls }],
      intervalMs: 100,
      access: { ca: undefined, auth: undefined, ...access },
    });
    sources.push(source);
    source.start();
    return source;
  }

  async function written(): Promise<string[]> {
    const { rows } = await contract.db.query<{ row: string }>(
      `SELECT concat_ws(' ', nodename, role, state, 'timeline ' || timeline,
                        CASE WHEN noloadbalance THEN 'noloadbalance' END) AS row
       FROM mpp_members WHERE source = 'patroni' AND groupid = 1 ORDER BY nodename`,
    );
    return rows.map(({ row }) => row);
  }

  async function writes(rows: readonly string[]): Promise<void> {
    await waitFor(`the members to be ${rows.join(', ')}`, async () => {
      const now = await written();
      return JSON.stringify(now) === JSON.stringify(rows) || undefined;
    });
  }

  const BOTH = ['a primary running timeline 2', 'b secondary streaming'];

  it('writes what any member answers, and follows', async () => {
    const one = await rest([LEADER, REPLICA]);
    start([one.url]);
    await writes(BOTH);
    one.members = [
      { ...LEADER, role: 'replica', state: 'stopped' },
      { ...REPLICA, role: 'leader', state: 'running', timeline: 3 },
    ];
    await writes(['a secondary stopped timeline 2', 'b primary running timeline 3']);
    one.members = [{ ...REPLICA, tags: { noloadbalance: true, nofailover: true } }];
    await writes(['a secondary removed timeline 2', 'b secondary streaming noloadbalance']);
    one.members = [LEADER, { role: 'replica', state: 'streaming', port: 1 }];
    await writes(['a primary running timeline 2', 'b secondary streaming noloadbalance']);
  });

  it.each([
    ['refuses', 'refused'],
    ['says nothing', null],
    ['has no cluster', undefined],
    ['answers what is no JSON', '<html>'],
    ['breaks off', '{"members": [{"role": "leader"'],
    ['answers without end', JSON.stringify({ members: [], rest: ' '.repeat(2_000_000) })],
    ['answers what is not Patroni', { status: 'fine' }],
  ])('goes to another member when the first %s', async (_, answer) => {
    const [first, second] = [await rest(), await rest([LEADER, REPLICA])];
    if (answer === 'refused') await first.stop();
    else first.answer = answer;
    start([answer === 'refused' ? 'http://127.0.0.1:1' : first.url, second.url]);
    await writes(BOTH);
  });

  it('says once that no node answers, and once that they do again; what it wrote stays', async () => {
    const one = await rest([LEADER, REPLICA]);
    start([one.url]);
    await writes(BOTH);
    one.answer = undefined;
    const asked = one.requests;
    await waitFor('several rounds', () => Promise.resolve(one.requests > asked + 3));
    expect(await written()).toEqual(BOTH);
    one.members = [LEADER];
    await waitFor('the answer', () =>
      Promise.resolve(lines.some((line) => line.includes('again'))),
    );
    expect(lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual([
      expect.stringContaining('503') as string,
      'Patroni answers again',
    ]);
  });

  it('logs in with a password', async () => {
    const one = await rest([LEADER, REPLICA], { auth: 'me:se:cret' });
    start([one.url], { auth: 'me:wrong' });
    await waitFor('the refusal', () => Promise.resolve(lines.some((line) => line.includes('401'))));
    expect(lines.join()).not.toContain('wrong');
    start([one.url], { auth: 'me:se:cret' });
    await writes(BOTH);
  });

  it('checks the certificate', async ({ skip }) => {
    const folder = await mkdtemp(join(tmpdir(), 'mpp-tls-'));
    try {
      const [keyFile, certFile] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
      const made = await run('openssl', [
        ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=patroni'],
        ...['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', keyFile, '-out', certFile],
      ]).then(
        () => true,
        () => false,
      );
      if (!made) skip('openssl, which makes the certificate, is not installed');
      const [key, cert] = [await readFile(keyFile, 'utf8'), await readFile(certFile, 'utf8')];
      const one = await rest([LEADER, REPLICA], { tls: { key, cert } });
      start([one.url]);
      await waitFor('the refusal', () =>
        Promise.resolve(lines.some((line) => /self.signed/.test(line))),
      );
      expect(await written()).toEqual([]);
      start([one.url], { ca: cert });
      await writes(BOTH);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('stops while it waits for an answer, and can be stopped twice', async () => {
    const one = await rest();
    one.answer = null;
    const source = start([one.url]);
    await waitFor('a request', () => Promise.resolve(one.requests > 0));
    await Promise.all([source.stop(), source.stop()]);
    await source.stop();
    expect(lines).toEqual([]);
  });
});
