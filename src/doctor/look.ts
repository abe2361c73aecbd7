import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import { ConfigError, DatabaseStateError } from '../errors.js';
import type { AbstractMPP } from '../mpp/abstract.js';
import { createMPP } from '../mpp/index.js';
import { readServerConnections } from '../postgres/pool.js';
import {
  chooseServer,
  closeSession,
  describeServers,
  errorText,
  isMissingDatabase,
  openSession,
} from '../postgres/session.js';
import { remedyOf } from '../postgres/sqlstate.js';
import { formatAddress } from '../address.js';
import { readCatalog, readGroups, readTriggers, readWork } from './contract.js';
import { ANSWER_MS, readCoordinator, readNodes } from './hosts.js';
import type {
  CatalogSeen,
  Failure,
  HostSeen,
  Observed,
  StrategySeen,
  Target,
  Unreachable,
} from './observed.js';
import { Parts } from './parts.js';
import { askPatroni, patroniAccess } from './patroni.js';
import { readSchema, readServer } from './server.js';

/** What keeps the doctor from waiting: for a server, for a lock, and for a statement. */
const BOUNDS = {
  connectionTimeoutMillis: ANSWER_MS,
  statement_timeout: 5_000,
  lock_timeout: ANSWER_MS,
  query_timeout: 6_000,
};

export interface LookOptions {
  readonly settings: Settings;
  readonly unknownVariables: readonly string[];
  /** What lasts for longer is said, in milliseconds. */
  readonly olderMs: number;
  /** True where MPP_LOCAL_HOSTNAME was given. */
  readonly isHostnameNamed: boolean;
}

/** What is seen where nothing answers. */
const NOTHING = {
  server: null,
  schema: null,
  strategy: null,
  rights: null,
  connections: null,
  catalog: null,
  triggers: null,
  work: null,
  groups: null,
  hosts: [],
  patroni: null,
  failures: null,
};

/**
 * Looks at one database and its nodes. Changes nothing, and waits for no lock but that of a table.
 *
 * @throws ConfigError when a setting cannot be used.
 */
export async function look(options: LookOptions): Promise<Observed> {
  const { settings, unknownVariables } = options;
  const { connection } = settings;
  const seen = { ...NOTHING, target: targetOf(options, connection), unknownVariables };
  try {
    const chosen = await chooseServer({ ...connection, ...BOUNDS });
    const target = targetOf(options, chosen);
    const session = await openSession(chosen, 'doctor', settings.schema);
    try {
      return await lookWith(session, options, { ...seen, target, unreachable: null });
    } finally {
      await closeSession(session);
    }
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    return { ...seen, unreachable: unreachable(error) };
  }
}

function targetOf({ settings, olderMs }: LookOptions, connection: Settings['connection']): Target {
  const { user = '', database = user } = connection;
  const { schema, maxSessions, strategy, node } = settings;
  const nodeUser = node.user ?? user;
  const own = describeServers(connection);
  return { node: own, database, user, nodeUser, schema, maxSessions, strategy, olderMs };
}

function unreachable(error: unknown): Unreachable {
  return {
    reason: errorText(error),
    remedy: remedyOf(error) ?? null,
    isMissingDatabase: isMissingDatabase(error),
  };
}

async function lookWith(
  session: pg.Client,
  options: LookOptions,
  seen: Observed,
): Promise<Observed> {
  const { settings } = options;
  const server = await readServer(session);
  // What is written elsewhere decides about a standby and a worker.
  if (server.inRecovery || server.localGroup !== 0) return { ...seen, server };
  const mpp = createMPP(settings);
  const failures: Failure[] = [];
  const parts = new Parts(seen.target.node, failures);
  const patroni = askPatroni(settings, patroniAccess(settings));
  const catalog = await parts.read('pg_dist_node', 'mpp_controller', () => readCatalog(session));
  const coordinator = await readAsController(session, mpp, parts);
  const contract = await readContract(session, options, parts, catalog);
  const hosts =
    catalog === null ? [] : await readHosts(session, { options, mpp, catalog, failures, seen });
  return {
    ...seen,
    server,
    ...contract,
    ...coordinator,
    catalog,
    hosts,
    patroni: await patroni,
    failures,
  };
}

async function readAsController(
  session: pg.ClientBase,
  mpp: AbstractMPP,
  parts: Parts,
): Promise<Pick<Observed, 'strategy' | 'connections'>> {
  const strategy = await parts.read('what this role may do', 'mpp_controller', () =>
    readStrategy(session, mpp),
  );
  const connections = await parts.read('max_connections', 'pg_read_all_settings', () =>
    readServerConnections(session),
  );
  return { strategy, connections };
}

async function readStrategy(session: pg.ClientBase, mpp: AbstractMPP): Promise<StrategySeen> {
  try {
    const { means, strategy } = await mpp.inspect(session);
    return { means, name: strategy };
  } catch (error) {
    if (!(error instanceof DatabaseStateError)) throw error;
    return { code: error.code, reason: error.message };
  }
}

/** The schema, and what is in it where it is the one of this version. */
async function readContract(
  session: pg.ClientBase,
  { settings, olderMs }: LookOptions,
  parts: Parts,
  catalog: CatalogSeen | null,
): Promise<Pick<Observed, 'schema' | 'rights' | 'triggers' | 'work' | 'groups'>> {
  const schema = await parts.read('the applied migrations', 'mpp_controller', () =>
    readSchema(session, settings.schema),
  );
  if (schema?.code !== null) {
    return { schema, rights: null, triggers: null, work: null, groups: null };
  }
  const rights = await parts.read(
    'the rights of this role',
    'mpp_controller',
    async () =>
      (
        await createMPP(settings)
          .inspect(session)
          .catch(() => null)
      )?.missingRights(session) ?? null,
  );
  const triggers = await parts.read('the triggers', 'mpp_controller', () => readTriggers(session));
  const work = await parts.read('tasks and controllers', 'mpp_operator', () =>
    readWork(session, olderMs),
  );
  const groups = await parts.read('members and systems', 'mpp_operator', () =>
    readGroups(session, catalog?.nodes ?? []),
  );
  return { schema, rights, triggers, work, groups };
}

interface HostsContext {
  readonly options: LookOptions;
  readonly mpp: AbstractMPP;
  readonly catalog: CatalogSeen;
  readonly failures: Failure[];
  readonly seen: Observed;
}

async function readHosts(
  session: pg.Client,
  { options, mpp, catalog, failures, seen }: HostsContext,
): Promise<HostSeen[]> {
  const { settings, olderMs, isHostnameNamed } = options;
  const { localHostname, databases = [], node: credentials } = settings;
  const wanted = { localHostname, isHostnameNamed, databases };
  const questions = { mpp, credentials, wanted, olderMs, catalog, failures };
  const row = catalog.nodes.find(({ groupid, role }) => groupid === 0 && role === 'primary');
  const own = row === undefined ? seen.target.node : formatAddress(row.address);
  const coordinator = await new Parts(own, failures).read('the coordinator', 'mpp_controller', () =>
    readCoordinator(session, own, questions),
  );
  const answer = coordinator?.answer;
  const known = answer !== undefined && !('silence' in answer) ? answer : undefined;
  const nodes = await readNodes(known, questions);
  return coordinator === null ? nodes : [coordinator, ...nodes];
}
