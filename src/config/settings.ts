import { z } from 'zod';
import {
  connectionFromUrl,
  nodeCredentials,
  type NodeCredentials,
  nodeInDatabase,
} from '../postgres/connection/database-url.js';
import { ConfigError } from '../errors.js';
import { LOG_LEVELS } from '../logger.js';
import type { Connection } from '../postgres/session.js';
import {
  isEndpoints,
  parseEndpoints,
  choice,
  duration,
  host,
  isSchemaName,
  listenAddress,
  optional,
} from './formats.js';

/** One setting: an environment variable and the flag of the same name. */
export interface Setting<T> {
  readonly env: `MPP_${string}`;
  /** As a person writes it; read by `schema` like any other value. */
  readonly default: string;
  readonly description: string;
  /** What a right value is, to follow "give". */
  readonly accepts: string;
  readonly schema: z.ZodType<T, string>;
}

const DAY = 86_400_000;

/**
 * Every setting there is, in the order of the help. DATABASE_URL, MPP_NODE_URL, MPP_PATRONI_AUTH and
 * MPP_AUTHINFO stand apart and have no flag: they may carry a password, and a flag can be read by
 * everybody in the list of processes.
 */
export const SETTINGS = {
  schema: {
    env: 'MPP_SCHEMA',
    default: 'public',
    description: 'schema of the control table and its functions',
    accepts: 'the name of a schema, at most 63 bytes, not beginning with pg_',
    schema: z.string().refine(isSchemaName),
  },
  databases: {
    env: 'MPP_DATABASES',
    default: '',
    description: 'Citus databases on the same nodes; a report into one is one into each: a,b',
    ...optional({
      accepts: 'names of databases with commas between, each once',
      schema: z
        .string()
        .transform(parseDatabases)
        .refine(areDatabases)
        .transform((names) => Object.freeze(names)),
    }),
  },
  pause: {
    env: 'MPP_PAUSE',
    default: 'auto',
    description:
      'what waits while a group is held, unless its task says otherwise; auto: all for a planned ' +
      'before_demote, writes after a crash',
    ...choice('auto', 'writes', 'all', 'none'),
  },
  strategy: {
    env: 'MPP_STRATEGY',
    default: 'auto',
    description: 'how a hold makes traffic wait; auto takes the best that the server has',
    ...choice('auto', 'shard-locks', 'pause-node', 'demoted-row'),
  },
  maxHolds: {
    env: 'MPP_MAX_HOLDS',
    default: 'unlimited',
    description: 'groups that may be held at the same time',
    accepts: 'unlimited, or a whole number of 1 or more',
    schema: z.union([
      z.literal('unlimited').transform(() => Infinity),
      z
        .string()
        .regex(/^[1-9]\d{0,8}$/)
        .transform(Number),
    ]),
  },
  maxSessions: {
    env: 'MPP_MAX_SESSIONS',
    default: '50',
    description:
      'sessions with the coordinator at most; never more than half of what it allows, nor less than a hold takes',
    accepts: 'a whole number of 1 or more',
    schema: z
      .string()
      .regex(/^[1-9]\d{0,5}$/)
      .transform(Number),
  },
  heartbeatMs: {
    env: 'MPP_HEARTBEAT',
    default: '10s',
    description: 'how often the controller marks itself present and checks everything',
    ...duration(100, DAY),
  },
  pollMs: {
    env: 'MPP_POLL',
    default: '1s',
    description: 'how often the table is looked at even without a notification',
    ...duration(10, DAY),
  },
  retentionMs: {
    env: 'MPP_RETENTION',
    default: '30d',
    description: 'how long finished tasks and their log are kept',
    ...duration(1_000, 36_500 * DAY),
  },
  maxTimeoutMs: {
    env: 'MPP_MAX_TIMEOUT',
    default: '5min',
    description: 'longest timeout that a client may ask for; a longer one is cut to it',
    ...duration(1_000, DAY),
  },
  minCooldownMs: {
    env: 'MPP_MIN_COOLDOWN',
    default: '1s',
    description: 'shortest cooldown that a client may ask for; a shorter one is raised to it',
    ...duration(0, DAY),
  },
  migrateTimeoutMs: {
    env: 'MPP_MIGRATE_TIMEOUT',
    default: '30s',
    description: 'how long migrations wait for their lock',
    ...duration(1, DAY),
  },
  topology: {
    env: 'MPP_TOPOLOGY',
    default: 'table,probe',
    description:
      'what tells of the cluster beside hooks: probe asks the nodes, patroni its REST API',
    accepts: 'table, probe and patroni, one or several with commas between; table is always on',
    schema: z
      .string()
      .transform((text) => text.split(',').map((name) => name.trim()))
      .pipe(z.array(z.enum(['table', 'probe', 'patroni'])))
      .transform((names) => Object.freeze([...new Set(['table' as const, ...names])])),
  },
  memberTtlMs: {
    env: 'MPP_MEMBER_TTL',
    default: '30s',
    description: 'how long a report of a node counts; older ones are stale',
    ...duration(200, DAY),
  },
  probeIntervalMs: {
    env: 'MPP_PROBE_INTERVAL',
    default: '1s',
    description: 'how often the probe asks each node; a lost connection it sees at once',
    ...duration(50, DAY),
  },
  probeTimeoutMs: {
    env: 'MPP_PROBE_TIMEOUT',
    default: '2s',
    description: 'how long a node may take to answer the probe',
    ...duration(10, 3_600_000),
  },
  probeSuspect: {
    env: 'MPP_PROBE_SUSPECT',
    default: 'off',
    description: 'on: a primary that refuses or drops the connection of the probe is held at once',
    ...choice('off', 'on'),
  },
  suspectTimeoutMs: {
    env: 'MPP_SUSPECT_TIMEOUT',
    default: '30s',
    description:
      'how long a hold that the probe opens may last: as long as a failover takes at most',
    ...duration(100, DAY),
  },
  verify: {
    env: 'MPP_VERIFY',
    default: 'on',
    description: 'on: a node is asked itself before its address becomes a row of pg_dist_node',
    ...choice('on', 'off'),
  },
  patroni: {
    env: 'MPP_PATRONI',
    default: '',
    description: "REST endpoints of each group's Patroni: 1=http://a:8008,http://b:8008;2=...",
    ...optional({
      accepts: 'group=URL,URL;group=URL with http or https URLs and no user in them',
      schema: z.string().refine(isEndpoints).transform(parseEndpoints),
    }),
  },
  patroniIntervalMs: {
    env: 'MPP_PATRONI_INTERVAL',
    default: '2s',
    description: 'how often Patroni is asked, and how long it may take to answer',
    ...duration(50, DAY),
  },
  patroniCa: {
    env: 'MPP_PATRONI_CA',
    default: '',
    description: 'PEM file of the authority that signs the certificates of Patroni',
    ...optional({ accepts: 'the path of a file', schema: z.string() }),
  },
  http: {
    env: 'MPP_HTTP',
    default: '',
    description:
      'where metrics and health are served: a port of 127.0.0.1, or host:port; off by default',
    ...optional(listenAddress()),
  },
  logLevel: {
    env: 'MPP_LOG_LEVEL',
    default: 'info',
    description: 'least level that is logged',
    ...choice(...LOG_LEVELS),
  },
  localHostname: {
    env: 'MPP_LOCAL_HOSTNAME',
    default: 'localhost',
    description: 'citus.local_hostname: the name by which a node reaches itself',
    ...host(),
  },
  coordinatorHost: {
    env: 'MPP_COORDINATOR_HOST',
    default: '',
    description: 'host by which workers reach the coordinator; without it that of the connection',
    ...optional(host()),
  },
  coordinatorPort: {
    env: 'MPP_COORDINATOR_PORT',
    default: '',
    description: 'port by which workers reach the coordinator; without it that of the server',
    ...optional({
      accepts: 'a port from 1 to 65535',
      schema: z.string().regex(/^\d+$/).transform(Number).pipe(z.number().min(1).max(65_535)),
    }),
  },
} as const satisfies Record<string, Setting<unknown>>;

export type SettingName = keyof typeof SETTINGS;

type Values = { readonly [K in SettingName]: z.output<(typeof SETTINGS)[K]['schema']> };

/** All settings of a process. Times are in milliseconds. Frozen. */
export interface Settings extends Values {
  /** From DATABASE_URL, and for what it leaves out from the PG* variables. */
  readonly connection: Connection;
  /** How nodes other than the server of `connection` are logged in to: MPP_NODE_URL, or as there. */
  readonly node: NodeCredentials;
  /** The other databases of MPP_DATABASES than that of `connection`. */
  readonly otherDatabases: readonly string[];
  /** `user:password` for Patroni's REST API, from MPP_PATRONI_AUTH. */
  readonly patroniAuth: string | undefined;
}

/** Variables of bootstrap, the tests and the demo: no settings with a flag, no mistakes either. */
const OTHER_VARIABLES: readonly string[] = [
  'MPP_AUTHINFO',
  'MPP_NODE_URL',
  'MPP_PATRONI_AUTH',
  'MPP_PG_BIN',
  'MPP_PG_MAJOR',
  'MPP_STANDIN',
];

/**
 * Reads all settings. A flag wins over its variable, a variable over the default; an empty variable
 * counts as not set. With MPP_DATABASES, `connection` is for the one of them that DATABASE_URL names, else
 * for the first.
 *
 * @param flags by the attribute name that commander gives them: `maxHolds` for `--max-holds`
 * @throws ConfigError naming the setting, its value and what is accepted
 */
export function loadSettings(
  env: NodeJS.ProcessEnv,
  flags: Readonly<Record<string, string | undefined>> = {},
): Settings {
  const values = Object.fromEntries(
    Object.entries<Setting<unknown>>(SETTINGS).map(([name, setting]) => [
      name,
      readSetting(setting, env, flags),
    ]),
  ) as Values;
  const connection = connectionFromUrl(env['DATABASE_URL'], env);
  const settings: Settings = Object.freeze({
    ...values,
    connection: Object.freeze(connection),
    node: nodeCredentials(connection, env),
    otherDatabases: Object.freeze([]),
    patroniAuth: env['MPP_PATRONI_AUTH'] || undefined,
  });
  const { databases } = settings;
  if (databases === undefined) return settings;
  const named = connection.database ?? '';
  return inDatabase(settings, databases.includes(named) ? named : (databases[0] ?? named));
}

/** MPP_* variables that mean nothing here: most likely a slip of the pen, worth a warning. */
export function unknownVariables(env: NodeJS.ProcessEnv): string[] {
  const known = new Set([
    ...Object.values(SETTINGS).map((setting) => setting.env),
    ...OTHER_VARIABLES,
  ]);
  return Object.keys(env).filter((name) => name.startsWith('MPP_') && !known.has(name));
}

/** The flag of a setting: `--max-holds` for MPP_MAX_HOLDS. */
export function flagOf(setting: Setting<unknown>): string {
  return `--${setting.env.slice('MPP_'.length).toLowerCase().replaceAll('_', '-')}`;
}

function readSetting(
  setting: Setting<unknown>,
  env: NodeJS.ProcessEnv,
  flags: Readonly<Record<string, string | undefined>>,
): unknown {
  const { origin, text } = givenSetting(setting, env, flags);
  const result = setting.schema.safeParse(text);
  if (result.success) return result.data;
  const named = origin === 'flag' ? flagOf(setting) : setting.env;
  throw new ConfigError(`${named} cannot be ${JSON.stringify(text)}; give ${setting.accepts}`);
}

/** A setting as it was written, and where. */
export interface GivenSetting {
  readonly origin: 'flag' | 'environment' | 'default';
  readonly text: string;
}

/** @param flags as for loadSettings */
export function givenSetting(
  setting: Setting<unknown>,
  env: NodeJS.ProcessEnv,
  flags: Readonly<Record<string, string | undefined>>,
): GivenSetting {
  const attribute = flagOf(setting)
    .slice(2)
    .replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
  const fromFlag = flags[attribute];
  if (fromFlag !== undefined) return { origin: 'flag', text: fromFlag };
  const fromEnvironment = env[setting.env];
  if (fromEnvironment) return { origin: 'environment', text: fromEnvironment };
  return { origin: 'default', text: setting.default };
}

/** What is wrong with a setting as it was written; undefined where nothing is. */
export function settingProblem(
  setting: Setting<unknown>,
  { text }: GivenSetting,
): string | undefined {
  return setting.schema.safeParse(text).success ? undefined : `give ${setting.accepts}`;
}

/** Names of databases, as MPP_DATABASES gives them: `a,b`. */
function parseDatabases(text: string): string[] {
  return text.split(',').map((name) => name.trim());
}

/** Whether each is the name of a database, and none is there twice. */
function areDatabases(names: readonly string[]): boolean {
  const isName = (name: string): boolean =>
    /^[^\p{Cc}]+$/u.test(name) && Buffer.byteLength(name) <= 63;
  return names.every(isName) && new Set(names).size === names.length;
}

/**
 * The settings for work in one of several databases on the same nodes: sessions, those with other nodes
 * included, are in that database, and `otherDatabases` are the rest.
 */
export function inDatabase(settings: Settings, database: string): Settings {
  return Object.freeze({
    ...settings,
    connection: Object.freeze({ ...settings.connection, database }),
    node: nodeInDatabase(settings.node, database),
    otherDatabases: Object.freeze(settings.databases?.filter((name) => name !== database) ?? []),
  });
}

/** The settings for each database of MPP_DATABASES; without it, those for the one that there is. */
export function eachDatabase(settings: Settings): Settings[] {
  return settings.databases?.map((name) => inDatabase(settings, name)) ?? [settings];
}
