import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { TestBed, type Server } from '../kit/servers/index.js';
import { setHba } from '../kit/tls/index.js';

const template = inject('template');

let testBed: TestBed;
let server: Server;
let home: string;

beforeAll(async () => {
  testBed = await TestBed.open({ template });
  server = await testBed.createServer('password');
  await server.start();
  await server.withSession(async (session) => {
    await session.query('SET password_encryption = md5');
    await session.query("CREATE ROLE md5 SUPERUSER LOGIN PASSWORD 's3cret'");
    await session.query("SET password_encryption = 'scram-sha-256'");
    await session.query("CREATE ROLE scram SUPERUSER LOGIN PASSWORD 's3cret'");
    await session.query("CREATE ROLE clear SUPERUSER LOGIN PASSWORD 's3cret'");
  });
  await setHba(server, [
    'host all scram 127.0.0.1/32 scram-sha-256',
    'host all md5 127.0.0.1/32 md5',
    'host all clear 127.0.0.1/32 password',
  ]);
});

afterAll(() => testBed.close());

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mpp-home-'));
});

afterEach(() => rm(home, { recursive: true }));

/** What a command writes and ends with; a database without the table of tasks is what it may complain of. */
async function login(user: string, env: NodeJS.ProcessEnv = {}) {
  const { stdout, stderr, exitCode } = await runCli(['status'], {
    HOME: home,
    DATABASE_URL: `postgresql://${user}@${server.address}/postgres`,
    ...env,
  });
  expect(stdout + stderr).not.toMatch(/s3cret|wrong-password|Deprecation|must be a string/);
  expect(stderr).toMatch(/^mpp-controller: [^\n]+\n$/);
  return { exitCode, line: stderr };
}

const LOGGED_IN = /has mpp-controller migrate been run in this database/;

describe.each(['scram', 'md5', 'clear'])('a login by %s', (user) => {
  it('takes the password of ~/.pgpass, and warns of nothing', async () => {
    const file = join(home, '.pgpass');
    await writeFile(file, `127.0.0.1:${server.port}:postgres:${user}:s3cret\n`, { mode: 0o600 });
    expect((await login(user)).line).toMatch(LOGGED_IN);
  });

  it('without a password says where it may be put', async () => {
    const { line } = await login(user);
    expect(line).toContain(`asks for the password of ${user}, and none is given`);
    expect(line).toMatch(/DATABASE_URL, PGPASSWORD or .*\.pgpass \(.*does not exist\)/);
  });

  it('says that a file is ignored because of its mode', async () => {
    const file = join(home, '.pgpass');
    await writeFile(file, '*:*:*:*:s3cret\n');
    await chmod(file, 0o644);
    expect((await login(user)).line).toMatch(
      /\.pgpass is ignored because its mode is 0644; chmod 0600 /,
    );
    // A password from elsewhere needs no file.
    expect((await login(user, { PGPASSWORD: 's3cret' })).line).toMatch(LOGGED_IN);
  });

  it('takes the password of PGPASSFILE, of PGPASSWORD, and of the URL, the last one first', async () => {
    const file = join(home, 'elsewhere');
    await writeFile(file, '*:*:*:*:s3cret\n', { mode: 0o600 });
    expect((await login(user, { PGPASSFILE: file })).line).toMatch(LOGGED_IN);
    await writeFile(file, '*:*:*:*:wrong-password\n', { mode: 0o600 });
    const env = { PGPASSFILE: file, PGPASSWORD: 's3cret' };
    expect((await login(user, env)).line).toMatch(LOGGED_IN);
    expect((await login(`${user}:s3cret`, { ...env, PGPASSWORD: 'wrong-password' })).line).toMatch(
      LOGGED_IN,
    );
    expect((await login(user, { PGPASSFILE: file })).line).toMatch(/authentication failed/);
  });
});
