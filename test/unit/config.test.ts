import { describe, expect, it } from 'vitest';
import {
  eachDatabase,
  flagOf,
  loadSettings,
  SETTINGS,
  unknownVariables,
} from '../../src/config/settings.js';
import { ConfigError } from '../../src/errors.js';

describe('loadSettings', () => {
  it('has the documented defaults', () => {
    const { connection, node, ...rest } = loadSettings({});
    expect(connection).toMatchObject({ host: 'localhost', port: 5432, targetSessionAttrs: 'any' });
    expect(node).not.toHaveProperty('host');
    expect(rest).toEqual({
      schema: 'public',
      databases: undefined,
      otherDatabases: [],
      pause: 'auto',
      strategy: 'auto',
      maxHolds: Infinity,
      maxSessions: 50,
      heartbeatMs: 10_000,
      pollMs: 1_000,
      retentionMs: 2_592_000_000,
      topology: ['table', 'probe'],
      memberTtlMs: 30_000,
      probeIntervalMs: 1_000,
      probeTimeoutMs: 2_000,
      probeSuspect: 'off',
      suspectTimeoutMs: 30_000,
      patroni: undefined,
      patroniIntervalMs: 2_000,
      patroniCa: undefined,
      patroniAuth: undefined,
      maxTimeoutMs: 300_000,
      minCooldownMs: 1_000,
      verify: 'on',
      migrateTimeoutMs: 30_000,
      http: undefined,
      logLevel: 'info',
      localHostname: 'localhost',
      coordinatorHost: undefined,
      coordinatorPort: undefined,
    });
  });

  it('reads the topology sources; hooks are always heard', () => {
    expect(loadSettings({ MPP_TOPOLOGY: 'probe, patroni,probe' }).topology).toEqual([
      'table',
      'probe',
      'patroni',
    ]);
  });

  it('reads the endpoints of each group', () => {
    const { patroni } = loadSettings({
      MPP_PATRONI: ' 1=http://a:8008, https://b:8008/api ;2=http://[::1]:8008; ',
    });
    expect(patroni).toEqual([
      { groupid: 1, urls: ['http://a:8008', 'https://b:8008/api'] },
      { groupid: 2, urls: ['http://[::1]:8008'] },
    ]);
  });

  it.each([
    [{ DATABASE_URL: 'postgresql://h/b' }, 'b', ['a']],
    [{ DATABASE_URL: 'postgresql://h/elsewhere' }, 'a', ['b']],
    [{ PGDATABASE: 'b' }, 'b', ['a']],
    [{}, 'a', ['b']],
  ])('with several databases and %o works in %s', (env, database, others) => {
    const settings = loadSettings({
      ...env,
      MPP_DATABASES: 'a, b',
      MPP_NODE_URL: 'postgresql://h/x',
    });
    expect(settings.connection.database).toBe(database);
    expect(settings.node.database).toBe(database);
    expect(settings.otherDatabases).toEqual(others);
    expect(eachDatabase(settings).map(({ connection }) => connection.database)).toEqual(['a', 'b']);
  });

  it('logs in to nodes as to the coordinator, or as MPP_NODE_URL says', () => {
    const own = loadSettings({ DATABASE_URL: 'postgresql://me@c:6000/d' }).node;
    expect(own).toMatchObject({ user: 'me', database: 'd' });
    expect(own).not.toHaveProperty('host');
    const other = loadSettings({
      DATABASE_URL: 'postgresql://me@c:6000/d',
      MPP_NODE_URL: 'postgresql://you:pw@ignored/e?sslmode=require',
    }).node;
    expect(other).toMatchObject({
      user: 'you',
      database: 'e',
      tls: { mode: 'require' },
    });
    expect(JSON.stringify(other)).not.toContain('pw');
    expect(() => loadSettings({ MPP_NODE_URL: 'you:secret' })).toThrow(
      /^MPP_NODE_URL (?!.*secret)/,
    );
  });

  it('takes a variable before the default and a flag before the variable', () => {
    expect(loadSettings({ MPP_MAX_HOLDS: '2' }).maxHolds).toBe(2);
    expect(loadSettings({ MPP_MAX_HOLDS: '2' }, { maxHolds: '3' }).maxHolds).toBe(3);
    expect(loadSettings({ MPP_MAX_HOLDS: '2' }, { maxHolds: undefined }).maxHolds).toBe(2);
    expect(loadSettings({ MPP_MAX_HOLDS: '2' }, { maxHolds: 'unlimited' }).maxHolds).toBe(Infinity);
  });

  it('counts an empty variable as not set, an empty flag as wrong', () => {
    expect(loadSettings({ MPP_HEARTBEAT: '' }).heartbeatMs).toBe(10_000);
    expect(() => loadSettings({}, { heartbeat: '' })).toThrow(ConfigError);
  });

  it.each([
    ['MPP_SCHEMA', 'pg_mine'],
    ['MPP_SCHEMA', 's'.repeat(64)],
    ['MPP_PAUSE', 'reads'],
    ['MPP_STRATEGY', 'table-locks'],
    ['MPP_MAX_HOLDS', '0'],
    ['MPP_MAX_HOLDS', '-1'],
    ['MPP_DATABASES', 'a,,b'],
    ['MPP_DATABASES', 'a,b,a'],
    ['MPP_DATABASES', 'a'.repeat(64)],
    ['MPP_MAX_HOLDS', '1.5'],
    ['MPP_HEARTBEAT', '10'],
    ['MPP_HEARTBEAT', '1ms'],
    ['MPP_HEARTBEAT', '2d'],
    ['MPP_POLL', '0s'],
    ['MPP_RETENTION', 'forever'],
    ['MPP_LOG_LEVEL', 'loud'],
    ['MPP_HTTP', '0'],
    ['MPP_HTTP', '65536'],
    ['MPP_HTTP', 'localhost'],
    ['MPP_HTTP', 'localhost:'],
    ['MPP_HTTP', ':9187'],
    ['MPP_HTTP', 'http://localhost:9187'],
    ['MPP_HTTP', '/run/mpp:9187'],
    ['MPP_HTTP', '127.0.0.1:9187x'],
    ['MPP_HTTP', '1e3'],
    ['MPP_LOCAL_HOSTNAME', 'two words'],
    ['MPP_COORDINATOR_PORT', '65536'],
    ['MPP_TOPOLOGY', 'tables'],
    ['MPP_TOPOLOGY', 'table,,probe'],
    ['MPP_MEMBER_TTL', '30'],
    ['MPP_PROBE_SUSPECT', 'true'],
    ['MPP_PATRONI', 'http://a:8008'],
    ['MPP_PATRONI', '1='],
    ['MPP_PATRONI', 'one=http://a:8008'],
    ['MPP_PATRONI', '1=http://a:8008;1=http://b:8008'],
    ['MPP_PATRONI', '1=a:8008'],
    ['MPP_PATRONI', '1=http://user:password@a:8008'],
  ] as const)('refuses %s=%s in one line with setting, value and what to give', (name, value) => {
    let message = '';
    try {
      loadSettings({ [name]: value });
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError);
      message = (error as ConfigError).message;
    }
    expect(message).toContain(`${name} cannot be ${JSON.stringify(value)}; give `);
    expect(message).not.toContain('\n');
  });

  it.each([
    ['9187', '127.0.0.1', 9187],
    ['localhost:80', 'localhost', 80],
    ['0.0.0.0:9187', '0.0.0.0', 9187],
    ['[::1]:9187', '::1', 9187],
    ['[::]:9187', '::', 9187],
  ])('listens on %s; a bare port is one of the loopback address', (text, host, port) => {
    expect(loadSettings({ MPP_HTTP: text }).http).toEqual({ host, port });
  });

  it('names the flag when the flag is wrong', () => {
    expect(() => loadSettings({ MPP_MAX_HOLDS: '1' }, { maxHolds: 'no' })).toThrow(
      '--max-holds cannot be "no"; give unlimited, or a whole number of 1 or more',
    );
  });

  it('is frozen', () => {
    const settings = loadSettings({ DATABASE_URL: 'postgresql://h/d' });
    expect(Object.isFrozen(settings)).toBe(true);
    expect(Object.isFrozen(settings.connection)).toBe(true);
  });

  it('has a default that its own schema accepts, for every setting', () => {
    for (const setting of Object.values(SETTINGS)) {
      expect(setting.schema.safeParse(setting.default).success, setting.env).toBe(true);
      expect(flagOf(setting)).toMatch(/^--[a-z-]+$/);
    }
  });
});

describe('unknownVariables', () => {
  it('finds a misspelt variable and no other', () => {
    const env = {
      MPP_MAX_HOLD: '1',
      MPP_MAX_HOLDS: '1',
      MPP_PG_BIN: '/x',
      MPP_AUTHINFO: 'x',
      PATH: '/x',
    };
    expect(unknownVariables(env)).toEqual(['MPP_MAX_HOLD']);
  });

  it('finds what this version does not do, so that no client relies on it', () => {
    expect(unknownVariables({ MPP_MAINTENANCE: 'x' })).toEqual(['MPP_MAINTENANCE']);
  });

  it('is quiet about what the tests and the demo read', () => {
    expect(unknownVariables({ MPP_PG_BIN: 'x', MPP_PG_MAJOR: 'x', MPP_STANDIN: 'x' })).toEqual([]);
  });
});
