import { createServer, type AddressInfo, type Server as Listening } from 'node:net';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { connectionFromUrl } from '../../src/postgres/connection/database-url.js';
import { UnreachableError } from '../../src/errors.js';
import { applyMigrations } from '../../src/postgres/migrate.js';
import { openSession } from '../../src/postgres/session.js';
import { runCli } from '../kit/cli.js';
import { TestBed, waitFor, waitUntilReplayed, type Server } from '../kit/servers/index.js';
import { setHba } from '../kit/tls/index.js';

const template = inject('template');

/** Of a port that nobody listens on. */
const CLOSED = '127.0.0.1:1';
const UNKNOWN = 'no-such-host.invalid:5432';

let testBed: TestBed;
let primary: Server;
let standby: Server;
/** Takes connections and answers nothing. */
let silent: Listening;

beforeAll(async () => {
  testBed = await TestBed.open({ template });
  primary = await testBed.createServer('primary');
  await primary.start();
  await primary.withSession(async (session) => {
    await session.query("CREATE ROLE known LOGIN PASSWORD 'right'");
    await applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 });
  });
  standby = await testBed.createStandby(primary);
  await waitUntilReplayed(primary, standby);
  silent = createServer(() => undefined);
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
});

afterAll(async () => {
  silent.close();
  await testBed.close();
});

function url(hosts: readonly string[], parameters = '', user = 'postgres'): string {
  return `postgresql://${user}@${hosts.join(',')}/postgres?${parameters}`;
}

function addressOf(listening: Listening): string {
  return `127.0.0.1:${(listening.address() as AddressInfo).port}`;
}

/** The server that a session is with, or the error. */
async function serverOf(to: string): Promise<string> {
  try {
    const client = await openSession(connectionFromUrl(to, {}), 'test');
    const { host, port } = client;
    await client.end();
    return `${host}:${port}`;
  } catch (error) {
    expect(error).toBeInstanceOf(UnreachableError);
    return String(error);
  }
}

const NOTIFY = ['notify', 'suspect', '--host', 'w1', '--group', '1'];

async function notify(to: string, ...more: string[]) {
  return runCli([...NOTIFY, ...more], { DATABASE_URL: to });
}

describe('several hosts', () => {
  it.each(['any', 'read-write', 'read-only', 'primary', 'standby', 'prefer-standby'])(
    'are tried in order for target_session_attrs=%s',
    async (target) => {
      const parameters = `target_session_attrs=${target}`;
      const [p, s] = [primary.address, standby.address];
      const wants = { any: undefined, 'read-write': p, primary: p }[target] ?? s;
      expect(await serverOf(url([p, s], parameters))).toBe(target === 'any' ? p : wants);
      expect(await serverOf(url([s, p], parameters))).toBe(wants);
    },
  );

  it('are asked for the one that takes writes where nothing is said', async () => {
    expect(await serverOf(url([standby.address, primary.address]))).toBe(primary.address);
  });

  it('may all be primaries for prefer-standby, and may not for standby', async () => {
    const hosts = [CLOSED, primary.address];
    expect(await serverOf(url(hosts, 'target_session_attrs=prefer-standby'))).toBe(primary.address);
    expect(await serverOf(url(hosts, 'target_session_attrs=standby'))).toContain(
      `${primary.address}: it is no standby, and target_session_attrs is standby`,
    );
  });

  it('may hold one that is down, one without an address and one that never answers', async () => {
    const hosts = [CLOSED, UNKNOWN, addressOf(silent), standby.address, primary.address];
    expect(await serverOf(url(hosts, 'connect_timeout=1'))).toBe(primary.address);
  });

  it('are each named with what is wrong with them', async () => {
    const text = await serverOf(url([CLOSED, standby.address]));
    expect(text).toContain(`cannot connect to ${CLOSED},${standby.address}/postgres: `);
    expect(text).toContain(`${CLOSED}: connect ECONNREFUSED`);
    expect(text).toContain(`${standby.address}: it is a standby, and target_session_attrs`);
  });

  it('are not tried further when one refuses the login', async () => {
    await setHba(standby, ['host all known 127.0.0.1/32 scram-sha-256']);
    await setHba(primary, ['host all known 127.0.0.1/32 trust']);
    const hosts = [standby.address, primary.address];
    expect(await serverOf(url(hosts, '', 'known:wrong'))).toMatch(/password authentication failed/);
    expect(await serverOf(url(hosts, '', 'known'))).toMatch(/asks for the password of known/);
    expect(await serverOf(url([...hosts].reverse(), '', 'known:wrong'))).toBe(primary.address);
  });

  it('are tried further when one only starts or stops', async () => {
    const starting = await testBed.createServer('starting');
    // A standby that allows no sessions before it has recovered.
    starting.configure({ hot_standby: false });
    await starting.writeData('standby.signal', '');
    const ended = starting.start().catch(() => undefined);
    await waitFor('the server to say that it starts', async () =>
      /not (yet )?accepting/.test(await serverOf(url([starting.address]))),
    );
    const hosts = [starting.address, primary.address];
    expect(await serverOf(url(hosts))).toBe(primary.address);
    await starting.stop('immediate');
    await ended;
  });

  it('are what PGHOST, PGPORT and PGTARGETSESSIONATTRS say', async () => {
    const env = {
      PGHOST: '127.0.0.1,127.0.0.1',
      PGPORT: `${standby.port},${primary.port}`,
      PGUSER: 'postgres',
    };
    expect((await runCli(NOTIFY, env)).exitCode).toBe(0);
    const asked = await runCli([...NOTIFY, '--wait=1s'], {
      ...env,
      PGTARGETSESSIONATTRS: 'standby',
    });
    expect(asked.exitCode).toBe(5);
    expect(asked.stderr).toContain('takes no writes');
  });
});

describe('notify', () => {
  it('reports to the host that takes writes', async () => {
    for (const first of [standby.address, CLOSED, UNKNOWN]) {
      expect(await notify(url([first, primary.address]))).toMatchObject({
        exitCode: 0,
        stderr: '',
      });
    }
  });

  it('ends with 5 at once when its only host takes no writes', async () => {
    const onStandby = await notify(url([standby.address]));
    expect(onStandby.exitCode).toBe(5);
    expect(onStandby.stderr).toMatch(
      /takes no writes \(.*read-only transaction\), nothing was reported; report to the primary/,
    );
    const options = 'options=-c%20default_transaction_read_only%3Don';
    const readOnly = await notify(url([primary.address], options));
    expect(readOnly.exitCode).toBe(5);
    expect(readOnly.stderr).toContain('takes no writes');
    const asked = await notify(
      url([primary.address], `${options}&target_session_attrs=read-write`),
    );
    expect(asked.exitCode).toBe(5);
    expect(asked.stderr).toContain('it is read-only, and target_session_attrs is read-write');
  });

  it('ends with 5 when none of several takes writes within its time', async () => {
    const { exitCode, stderr } = await notify(url([CLOSED, standby.address]), '--wait=1s');
    expect(exitCode).toBe(5);
    expect(stderr).toContain('it is a standby');
  });

  it('gives up at once when the login is refused', async () => {
    const began = performance.now();
    const hosts = [primary.address, standby.address];
    const { exitCode, stderr } = await notify(url(hosts, '', 'stranger'), '--wait=60s');
    expect(exitCode).toBe(2);
    expect(stderr).toMatch(/role "stranger" does not exist|no pg_hba.conf entry/);
    expect(performance.now() - began).toBeLessThan(30_000);
  });

  it('waits for one of them to be promoted', async () => {
    await primary.stop();
    let rounds = 0;
    const counting = createServer((socket) => {
      rounds += 1;
      socket.destroy();
    });
    await new Promise<void>((resolve) => counting.listen(0, '127.0.0.1', resolve));
    const hosts = url([primary.address, addressOf(counting), standby.address]);
    const reporting = notify(hosts, '--group=9', '--wait=60s', '--timeout=60s');
    await waitFor('all hosts to have been tried', () => Promise.resolve(rounds > 1));
    await standby.promote();
    await waitFor('the report', () =>
      standby.withSession(async (session) => {
        const { rowCount } = await session.query(
          "UPDATE mpp_tasks SET status = 'done' WHERE groupid = 9 AND status = 'pending'",
        );
        return rowCount === 1;
      }),
    );
    expect(await reporting).toMatchObject({ exitCode: 0, stderr: '' });
    counting.close();
  });
});
