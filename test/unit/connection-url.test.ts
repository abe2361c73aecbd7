import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { loadSettings } from '../../src/config/settings.js';
import { ConfigError } from '../../src/errors.js';
import { eachServer, sessionConfig, type Connection } from '../../src/postgres/session.js';

function connectionOf(url: string | undefined, env: NodeJS.ProcessEnv = {}): Connection {
  return loadSettings({ ...env, DATABASE_URL: url }).connection;
}

/** What node-postgres makes of it once our own settings are beside it. */
function clientOf(url: string): pg.Client {
  return new pg.Client(sessionConfig(connectionOf(url), 'test'));
}

/** The servers in the order in which they are tried, `host:port` each. */
function serversOf(url: string | undefined, env: NodeJS.ProcessEnv = {}): string[] {
  return eachServer(connectionOf(url, env)).map(
    ({ host, port, hostaddr }) => `${host} ${port}${hostaddr === undefined ? '' : ` ${hostaddr}`}`,
  );
}

function refusalOf(url: string | undefined, env: NodeJS.ProcessEnv = {}): string {
  let caught: unknown;
  try {
    connectionOf(url, env);
  } catch (error) {
    caught = error;
  }
  expect(caught).toBeInstanceOf(ConfigError);
  expect((caught as ConfigError).cause).toBeUndefined();
  return (caught as ConfigError).message;
}

describe('a connection URL', () => {
  it('gives host, port, database and user, percent-encoding undone', () => {
    const client = clientOf('postgresql://us%40er:p%2Fw@db.example:6000/my%20db');
    expect(client).toMatchObject({
      host: 'db.example',
      port: 6000,
      database: 'my db',
      user: 'us@er',
    });
  });

  it('hands the password over without showing it', async () => {
    const connection = connectionOf('postgres://u:p%2Fw@h/d?sslpassword=key%2Fpw');
    expect(JSON.stringify(connection)).not.toMatch(/p\/w|key/);
    expect(typeof connection.password === 'function' ? await connection.password() : null).toBe(
      'p/w',
    );
  });

  it('cannot set the application_name', () => {
    const connection = connectionOf('postgres://h/d?application_name=x', { PGAPPNAME: 'y' });
    expect(sessionConfig(connection, 'test').application_name).toBe('mpp-controller test');
    expect(connection).not.toHaveProperty('application_name');
    expect(connection).not.toHaveProperty('connectionString');
  });

  it('reads sockets, in both spellings', () => {
    const socket = { host: '/var/run', database: 'd' };
    expect(clientOf('postgresql://u@%2Fvar%2Frun/d')).toMatchObject(socket);
    expect(clientOf('postgresql://u@/d?host=/var/run')).toMatchObject(socket);
  });

  it('keeps options and times', () => {
    expect(
      connectionOf(
        'postgres://h/d?options=-c%20lock_timeout%3D1s&connect_timeout=7&keepalives=0&keepalives_idle=3',
      ),
    ).toMatchObject({
      options: '-c lock_timeout=1s',
      connectionTimeoutMillis: 7_000,
      keepAlive: false,
      keepAliveInitialDelayMillis: 3_000,
    });
  });

  it('takes a plus as a plus', () => {
    expect(connectionOf('postgres://h/d?user=a+b').user).toBe('a+b');
  });

  it.each([
    'host=h password=secret',
    'mysql://u:secret@h/d',
    'postgres:/u:secret@h/d',
    'postgres://u:secret@h:99999/d',
    'postgres://u:secret@[h/d',
    'postgres://u:secret@[::1]x/d',
    'postgres://u:secret%zz@h/d',
    'postgres://u:secret@h/d?sslrootcert=/no/such/file',
    // An unencoded slash ends the host, and the rest of the password looks like a parameter.
    'postgres://u:p/a?secret=x@h/d',
    'postgres://u:p/secret@h/d',
    'postgres://u:p@h/d?sslmode=secret',
    'postgres://u:p@h/d?connect_timeout=secret',
    'postgres://u:p@h/d?secret',
    'postgres://u:p@h/d?options=secret=x',
  ])('refuses %j and shows nothing of its password', (url) => {
    const message = refusalOf(url);
    expect(message).toMatch(/DATABASE_URL/);
    expect(message).not.toContain('secret');
  });
});

describe('several hosts', () => {
  it.each([
    ['postgres://a,b/d', ['a 5432', 'b 5432']],
    ['postgres://a:1,b:2/d', ['a 1', 'b 2']],
    ['postgres://a:1,b/d', ['a 1', 'b 5432']],
    ['postgres://a,b/d?port=7', ['a 7', 'b 7']],
    ['postgres://[::1]:1,[fe80::2],c:3/d', ['::1 1', 'fe80::2 5432', 'c 3']],
    ['postgres://%2Fvar%2Frun,b:2/d', ['/var/run 5432', 'b 2']],
    ['postgres://a%2Cb/d', ['a 5432', 'b 5432']],
    ['postgres:///d?host=a,b&port=1,2', ['a 1', 'b 2']],
    ['postgres://ignored:9/d?host=a,b', ['a 9', 'b 9']],
    ['postgres://a,b/d?hostaddr=10.0.0.1,', ['a 5432 10.0.0.1', 'b 5432']],
    ['postgres:///d?hostaddr=10.0.0.1,::1', ['10.0.0.1 5432 10.0.0.1', '::1 5432 ::1']],
  ])('are read from %s', (url, servers) => {
    expect(serversOf(url)).toEqual(servers);
  });

  it.each([
    [{ PGHOST: 'a,b', PGPORT: '1,2' }, ['a 1', 'b 2']],
    [{ PGHOST: 'a,b', PGPORT: '7' }, ['a 7', 'b 7']],
    [{ PGHOST: 'a', PGHOSTADDR: '10.0.0.1' }, ['a 5432 10.0.0.1']],
    [{ PGHOST: '', PGPORT: '' }, ['localhost 5432']],
  ])('are read from %o', (env, servers) => {
    expect(serversOf(undefined, env)).toEqual(servers);
    expect(serversOf('postgresql:///d', env)).toEqual(servers);
  });

  it('are those of the URL, whatever the variables say', () => {
    const servers = ['a 5432', 'b 5432'];
    expect(serversOf('postgres://a,b/d', { PGHOST: 'c', PGHOSTADDR: '' })).toEqual(servers);
    expect(serversOf('postgres://a,b/d', { PGPORT: '7' })).toEqual(servers);
    expect(serversOf('postgres://a/d', { PGPORT: '7' })).toEqual(['a 7']);
  });

  it.each([
    'postgres://a,b/d?port=1,2,3',
    'postgres://a,b/d?hostaddr=10.0.0.1',
    'postgres://a/d?hostaddr=name',
    'postgres://a:0/d',
    'postgres://a,b:x/d',
  ])('are refused where their lists do not fit: %s', (url) => {
    expect(refusalOf(url)).toMatch(/^(port|hostaddr) of DATABASE_URL has a wrong value; give /);
  });

  it('are asked for the one that takes writes, and one host for nothing', () => {
    expect(connectionOf('postgres://a,b/d').targetSessionAttrs).toBe('read-write');
    expect(connectionOf('postgres://a/d').targetSessionAttrs).toBe('any');
    expect(
      connectionOf('postgres://a,b/d', { PGTARGETSESSIONATTRS: 'primary' }).targetSessionAttrs,
    ).toBe('primary');
    expect(refusalOf('postgres://a,b/d?target_session_attrs=master')).toContain('prefer-standby');
  });

  it('mean nothing in MPP_NODE_URL', () => {
    const { node } = loadSettings({
      DATABASE_URL: 'postgres://a,b/d',
      MPP_NODE_URL: 'postgres://you@c,e:7/d?target_session_attrs=standby',
    });
    for (const name of ['host', 'port', 'servers', 'targetSessionAttrs']) {
      expect(node).not.toHaveProperty(name);
    }
    expect(node.user).toBe('you');
  });
});

describe('parameters of libpq', () => {
  it.each([
    'service=x',
    'gssencmode=require',
    'channel_binding=require',
    'require_auth=scram-sha-256',
    'requirepeer=postgres',
    'sslcrldir=/x',
    'sslcertmode=require',
    'load_balance_hosts=random',
    'keepalives_interval=5',
    'tcp_user_timeout=5',
    'replication=database',
    'oauth_issuer=x',
  ])('refuses %s by name, with what to do', (parameter) => {
    const name = parameter.split('=')[0] ?? '';
    expect(refusalOf(`postgres://h/d?${parameter}`)).toMatch(
      new RegExp(`^${name} of DATABASE_URL is set, and mpp-controller has no ${name}.*; .+`),
    );
  });

  it.each(['PGSERVICE', 'PGREQUIREAUTH', 'PGREQUIREPEER', 'PGSSLCRLDIR', 'PGLOADBALANCEHOSTS'])(
    'refuses the variable %s by name',
    (name) => {
      expect(refusalOf('postgres://h/d', { [name]: 'x' })).toMatch(
        new RegExp(`^${name} is set, and mpp-controller has no `),
      );
      expect(() => connectionOf('postgres://h/d', { [name]: '' })).not.toThrow();
    },
  );

  it.each([
    'gssencmode=prefer',
    'channel_binding=prefer',
    'load_balance_hosts=disable',
    'fallback_application_name=x',
    'client_encoding=latin1',
    'krbsrvname=postgres',
    'sslcompression=0',
    'sslmode=',
  ])('takes %s, which changes nothing', (parameter) => {
    expect(() => connectionOf(`postgres://h/d?${parameter}`)).not.toThrow();
  });

  it('refuses what libpq does not know', () => {
    expect(refusalOf('postgres://h/d?nope=1')).toContain('a parameter "nope" that libpq does not');
  });

  it('takes sslmode from the URL before the variables, and JDBC’s spelling of it', () => {
    const modeOf = (url: string, env: NodeJS.ProcessEnv = {}) => connectionOf(url, env).tls?.mode;
    expect(modeOf('postgres://h/d')).toBe('prefer');
    expect(modeOf('postgres://h/d', { PGSSLMODE: 'disable' })).toBe('disable');
    expect(modeOf('postgres://h/d?sslmode=require', { PGSSLMODE: 'disable' })).toBe('require');
    expect(modeOf('postgres://h/d', { PGREQUIRESSL: '1' })).toBe('require');
    expect(modeOf('postgres://h/d', { PGREQUIRESSL: '1', PGSSLMODE: 'allow' })).toBe('allow');
    expect(modeOf('postgres://h/d?ssl=true')).toBe('require');
    expect(modeOf('postgres://h/d?sslrootcert=system')).toBe('verify-full');
  });

  it.each([
    'sslmode=no-verify',
    'sslmode=require&sslrootcert=system',
    'sslnegotiation=direct',
    'sslnegotiation=direct&sslmode=prefer',
    'ssl_min_protocol_version=SSLv3',
  ])('refuses %s', (parameters) => {
    expect(refusalOf(`postgres://h/d?${parameters}`)).toMatch(/has a wrong value; give /);
  });
});
