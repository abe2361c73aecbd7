import { chmod, copyFile, mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { connectionFromUrl } from '../../src/postgres/connection/database-url.js';
import { ConfigError } from '../../src/errors.js';
import { createPool } from '../../src/postgres/pool.js';
import { openSession } from '../../src/postgres/session.js';
import { TestBed, type Server } from '../kit/servers/index.js';
import { ClientFiles, setHba, turnTlsOn } from '../kit/tls/index.js';

const template = inject('template');

let testBed: TestBed;
/** Takes sessions with and without TLS, some roles only with or without. */
let both: Server;
/** Has no TLS. */
let plain: Server;
let files: ClientFiles;
let home: string;
const realHome = process.env['HOME'];

const ROLES = ['anyone', 'only_tls', 'only_plain', 'with_cert'];

beforeAll(async () => {
  testBed = await TestBed.open({ template });
  [both, plain] = await Promise.all([testBed.createServer('both'), testBed.createServer('plain')]);
  await Promise.all([both.start(), plain.start()]);
  await turnTlsOn(both);
  for (const server of [both, plain]) {
    await server.withSession(async (session) => {
      for (const role of ROLES) await session.query(`CREATE ROLE ${role} LOGIN`);
    });
  }
  await setHba(both, [
    'host all anyone 127.0.0.1/32 trust',
    'hostssl all only_tls 127.0.0.1/32 trust',
    'hostnossl all only_plain 127.0.0.1/32 trust',
    'hostssl all with_cert 127.0.0.1/32 cert',
  ]);
  files = await ClientFiles.make();
});

afterAll(async () => {
  await testBed.close();
  await files.remove();
});

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mpp-home-'));
  process.env['HOME'] = home;
});

afterEach(async () => {
  process.env['HOME'] = realHome;
  await rm(home, { recursive: true });
});

interface Login {
  readonly server?: Server;
  readonly user?: string;
  /** The name by which the server is reached; its certificate is for db.example. */
  readonly host?: string;
  readonly parameters?: string;
  readonly env?: NodeJS.ProcessEnv;
}

function connectionTo({ server = both, user = 'anyone', host = 'db.example', ...rest }: Login) {
  const url =
    `postgresql://${user}@${host}:${server.port}/postgres?hostaddr=127.0.0.1` +
    (rest.parameters ? `&${rest.parameters}` : '');
  return connectionFromUrl(url, rest.env ?? {});
}

/** How a session came about: `tls`, `plain`, or the error. */
async function attempt(login: Login): Promise<string> {
  try {
    const client = await openSession(connectionTo(login), 'test');
    try {
      const { rows } = await client.query<{ ssl: boolean }>(
        'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()',
      );
      return rows[0]?.ssl ? 'tls' : 'plain';
    } finally {
      await client.end();
    }
  } catch (error) {
    return String(error);
  }
}

/** A line of the table in docs/connecting.md. */
type Line = Readonly<
  { mode: string } & Record<'both' | 'hostssl' | 'hostnossl' | 'off', string | RegExp>
>;

const REJECTED = /no pg_hba.conf entry/;
const NO_TLS = /does not take TLS \(ssl = off\), which sslmode=.* asks for/;
const UNVERIFIED = /the root certificate file .*root.crt does not exist, and sslmode=verify/;

const LINES: readonly Line[] = [
  { mode: 'disable', both: 'plain', hostssl: REJECTED, hostnossl: 'plain', off: 'plain' },
  { mode: 'allow', both: 'plain', hostssl: 'tls', hostnossl: 'plain', off: 'plain' },
  { mode: 'prefer', both: 'tls', hostssl: 'tls', hostnossl: 'plain', off: 'plain' },
  { mode: 'require', both: 'tls', hostssl: 'tls', hostnossl: REJECTED, off: NO_TLS },
];

describe.each(LINES)('sslmode=$mode without a root certificate', (line) => {
  it.each([
    ['a server that takes both', { server: 'both', user: 'anyone' }, line.both],
    ['a server that takes TLS alone', { server: 'both', user: 'only_tls' }, line.hostssl],
    ['a server that takes no TLS', { server: 'both', user: 'only_plain' }, line.hostnossl],
    ['a server without TLS', { server: 'plain', user: 'anyone' }, line.off],
  ] as const)('is what libpq makes of it for %s', async (_, { server, user }, expected) => {
    const to = { server: server === 'both' ? both : plain, user };
    const got = await attempt({ ...to, parameters: `sslmode=${line.mode}` });
    if (typeof expected === 'string') expect(got).toBe(expected);
    else expect(got).toMatch(expected);
    expect(await attempt({ ...to, env: { PGSSLMODE: line.mode } })).toBe(got);
  });
});

describe('the certificate of the server', () => {
  const right = () => `sslrootcert=${files.path('root.crt')}`;
  const wrong = () => `sslrootcert=${files.path('other-root.crt')}`;

  it.each(['verify-ca', 'verify-full'])('needs a root certificate for %s', (mode) => {
    expect(() => connectionTo({ parameters: `sslmode=${mode}` })).toThrow(UNVERIFIED);
    expect(() => connectionTo({ env: { PGSSLMODE: mode } })).toThrow(ConfigError);
  });

  it.each(['require', 'verify-ca', 'verify-full'])(
    'must come from the root certificate with %s',
    async (mode) => {
      expect(await attempt({ parameters: `sslmode=${mode}&${right()}` })).toBe('tls');
      expect(await attempt({ parameters: `sslmode=${mode}&${wrong()}` })).toMatch(
        /TLS with db.example failed: .*certificate.* \(sslmode=.* verifies it with .*other-root.crt\)/,
      );
    },
  );

  it('may be for another name with require and verify-ca, and may not with verify-full', async () => {
    const host = 'other.example';
    expect(await attempt({ host, parameters: `sslmode=require&${right()}` })).toBe('tls');
    expect(await attempt({ host, parameters: `sslmode=verify-ca&${right()}` })).toBe('tls');
    expect(await attempt({ host, parameters: `sslmode=verify-full&${right()}` })).toMatch(
      /TLS with other.example failed: .*does not match certificate/,
    );
    const address = { host: '127.0.0.1', parameters: `sslmode=verify-full&${right()}` };
    expect(await attempt(address)).toBe('tls');
  });

  it('is not verified by prefer, which goes on without TLS where it is wrong', async () => {
    expect(await attempt({ parameters: 'sslmode=prefer' })).toBe('tls');
    expect(await attempt({ parameters: `sslmode=prefer&${wrong()}` })).toBe('plain');
  });

  it('is verified with ~/.postgresql/root.crt, and looked up in root.crl', async () => {
    await mkdir(join(home, '.postgresql'));
    const root = join(home, '.postgresql', 'root.crt');
    await copyFile(files.path('other-root.crt'), root);
    expect(await attempt({ parameters: 'sslmode=require' })).toMatch(/TLS with .* failed/);
    await copyFile(files.path('root.crt'), root);
    expect(await attempt({ parameters: 'sslmode=require' })).toBe('tls');
    expect(await attempt({ env: { PGSSLMODE: 'verify-full' } })).toBe('tls');
    const crl = join(home, '.postgresql', 'root.crl');
    await copyFile(files.path('empty.crl'), crl);
    expect(await attempt({ parameters: 'sslmode=require' })).toBe('tls');
    await copyFile(files.path('revoked.crl'), crl);
    expect(await attempt({ parameters: 'sslmode=require' })).toMatch(/certificate revoked/);
  });

  it('is verified with the file that PGSSLROOTCERT or PGSSLCRL names', async () => {
    const env = { PGSSLMODE: 'verify-ca', PGSSLROOTCERT: files.path('other-root.crt') };
    expect(await attempt({ env })).toMatch(/TLS with .* failed/);
    expect(await attempt({ env: { ...env, PGSSLROOTCERT: files.path('root.crt') } })).toBe('tls');
    const revoked = { PGSSLROOTCERT: files.path('root.crt'), PGSSLCRL: files.path('revoked.crl') };
    expect(await attempt({ env: { ...env, ...revoked } })).toMatch(/certificate revoked/);
  });

  it('is verified with the authorities of Node.js for sslrootcert=system', async () => {
    expect(await attempt({ parameters: 'sslrootcert=system' })).toMatch(
      /TLS with .* failed: .*\(sslmode=verify-full verifies it with Node.js's own/,
    );
  });

  it('is read again for each session', async () => {
    const root = join(home, 'root.crt');
    await copyFile(files.path('other-root.crt'), root);
    const connection = connectionTo({ parameters: `sslmode=verify-ca&sslrootcert=${root}` });
    await expect(openSession(connection, 'test')).rejects.toThrow(/TLS with .* failed/);
    await copyFile(files.path('root.crt'), root);
    await (await openSession(connection, 'test')).end();
  });
});

describe('TLS without asking first', () => {
  it('is what sslnegotiation=direct does, where the server knows it', async () => {
    const got = await attempt({ parameters: 'sslmode=require&sslnegotiation=direct' });
    const { rows } = await both.withSession((session) =>
      session.query<{ server_version_num: string }>('SHOW server_version_num'),
    );
    if (Number(rows[0]?.server_version_num) >= 170_000) expect(got).toBe('tls');
    else expect(got).toMatch(/TLS with .* failed/);
  });
});

describe('a certificate of the client', () => {
  const named = (key: 'client.key' | 'client-encrypted.key' = 'client.key') =>
    `sslcert=${files.path('client.crt')}&sslkey=${files.path(key)}`;

  it('logs in', async () => {
    const user = 'with_cert';
    expect(await attempt({ user, parameters: `sslmode=require&${named()}` })).toBe('tls');
    expect(await attempt({ user, parameters: named() })).toBe('tls');
    const env = { PGSSLCERT: files.path('client.crt'), PGSSLKEY: files.path('client.key') };
    expect(await attempt({ user, env })).toBe('tls');
    expect(await attempt({ user })).toMatch(/valid client certificate/);
  });

  it('is taken from ~/.postgresql', async () => {
    const folder = join(home, '.postgresql');
    await mkdir(folder);
    await copyFile(files.path('client.crt'), join(folder, 'postgresql.crt'));
    await copyFile(files.path('client.key'), join(folder, 'postgresql.key'));
    expect(await attempt({ user: 'with_cert' })).toBe('tls');
    await rename(join(folder, 'postgresql.key'), join(folder, 'away.key'));
    expect(() => connectionTo({})).toThrow(/postgresql.crt has no private key: .*postgresql.key/);
  });

  it('may have a key with a passphrase', async () => {
    const encrypted = named('client-encrypted.key');
    const login = { user: 'with_cert', parameters: `sslmode=require&${encrypted}` };
    expect(await attempt({ ...login, parameters: `${login.parameters}&sslpassword=secret` })).toBe(
      'tls',
    );
    expect(() => connectionTo(login)).toThrow(
      /the private key file .* cannot be used: .*sslpassword/,
    );
  });

  it.each(['sslrootcert', 'sslcert', 'sslcrl'])('must be what %s says', async (name) => {
    const file = join(home, 'file');
    await writeFile(file, 'nothing of this kind');
    const rest = name === 'sslcrl' ? `&sslrootcert=${files.path('root.crt')}` : '';
    const key = name === 'sslcert' ? `&sslkey=${files.path('client.key')}` : '';
    expect(() => connectionTo({ parameters: `${name}=${file}${rest}${key}` })).toThrow(
      new RegExp(`the .* ${file} cannot be used`),
    );
  });

  it('may have no key that others can read', async () => {
    const key = join(home, 'client.key');
    await copyFile(files.path('client.key'), key);
    await chmod(key, 0o640);
    expect(() =>
      connectionTo({ parameters: `sslcert=${files.path('client.crt')}&sslkey=${key}` }),
    ).toThrow(/the private key file .* may be read by others: its mode is 0640; chmod 0600 /);
  });

  it.each(['sslrootcert', 'sslcert', 'sslcrl'])('needs the file that %s names', (name) => {
    const missing = join(home, 'missing');
    const rest = name === 'sslcrl' ? `&sslrootcert=${files.path('root.crt')}` : '';
    expect(() => connectionTo({ parameters: `${name}=${missing}${rest}` })).toThrow(
      `that ${name} of DATABASE_URL names cannot be read: ${missing} (ENOENT)`,
    );
  });
});

describe('sessions of a pool', () => {
  it('are encrypted like any other, each by itself', async () => {
    for (const [login, expected] of [
      [{ user: 'only_tls' }, true],
      [{ user: 'only_plain' }, false],
      [{ user: 'only_tls', parameters: 'sslmode=allow' }, true],
    ] as const) {
      const pool = createPool(connectionTo(login), {
        schema: 'public',
        purpose: 'test',
        max: 3,
        onIdleError: () => undefined,
      });
      const clients = await Promise.all([pool.connect(), pool.connect(), pool.connect()]);
      for (const client of clients) {
        const { rows } = await client.query<{ ssl: boolean; text: string }>(
          `SELECT ssl, repeat('x', 1000000) AS text FROM pg_stat_ssl WHERE pid = pg_backend_pid()`,
        );
        expect(rows[0]?.ssl).toBe(expected);
        expect(rows[0]?.text.length).toBe(1_000_000);
        const sent = 'y'.repeat(3_000_000);
        const echo = await client.query<{ length: number }>('SELECT length($1::text)', [sent]);
        expect(echo.rows[0]?.length).toBe(sent.length);
        client.release();
      }
      await pool.end();
    }
  });
});
