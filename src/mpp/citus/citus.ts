import type { ClientBase } from 'pg';
import { ConfigError, DatabaseStateError } from '../../errors.js';
import type { Queryable } from '../../postgres/queries.js';
import type { Connection } from '../../postgres/session.js';
import type {
  AskNode,
  AbstractMPP,
  AbstractMPPHandler,
  MPPSettings,
  ReplicationSlot,
} from '../abstract.js';
import type { NodeAnswer } from '../node-answer.js';
import { bootstrap } from './bootstrap.js';
import { cancelStatement, changeBlockers, withMaintenance } from './change-conditions.js';
import {
  COORDINATOR_ADDRESS,
  noCitus,
  notCoordinator,
  refuseWorker,
  requireCatalog,
  applyStep,
  NODES_QUERY,
  readNodes,
} from './nodes.js';
import {
  applyGucs,
  adviseSyncInterval,
  countDatabases,
  currentGucs,
  planGucs,
  readGucs,
} from './gucs.js';
import { STRATEGIES, type StrategyName } from './pause/strategies.js';
import { CitusTraffic } from './pause/traffic.js';
import { readLockNeeds } from './pause/targets.js';
import { missingNodeRights, missingRights } from './rights.js';
import { planTransition } from './transition.js';

/** What the server offers to this role. */
interface Features {
  readonly installed: boolean;
  readonly version: string;
  readonly updateNode: boolean;
  readonly pauseNode: boolean;
  /** Whether lock_shard_metadata is there and every table is this role's to lock. */
  readonly shardLocks: boolean;
  readonly maySignal: boolean;
}

interface CitusOptions {
  readonly strategy: StrategyName | 'auto';
  /** How the coordinator is reached, for a part that needs a session of its own. */
  readonly connection?: Connection | undefined;
}

/** Citus, as an MPP database. */
export function createCitus(options: CitusOptions): AbstractMPP {
  return {
    name: 'citus',
    nodesQuery: NODES_QUERY,
    validateConfig,
    bootstrap,
    async planGucs(session, wanted) {
      const states = await readGucs(session);
      const databases = await countDatabases(session, wanted.databases);
      return { states, changes: planGucs(currentGucs(states), { ...wanted, databases }) };
    },
    applyGucs,
    refuseWorker,
    requireCatalog,
    ignoreReplicationSlot,
    async inspect(session) {
      const features = await readFeatures(session);
      return createHandler(options, chooseStrategies(options.strategy, features), features);
    },
    prepareAsking,
    createTraffic: (traffic) => new CitusTraffic(traffic),
    missingNodeRights,
    readLockNeeds,
  };
}

interface Rights extends Pick<Features, 'shardLocks' | 'maySignal'> {
  /** Group of this server, null where there is none. */
  readonly localGroup: number | null;
  /** Where the coordinator is, as this server knows it. */
  readonly coordinator: string | null;
}

/** @throws DatabaseStateError `NO_CITUS`, `NOT_COORDINATOR` */
async function readFeatures(session: ClientBase): Promise<Features> {
  const { rows } = await session.query<Features>(READ_FEATURES);
  if (rows[0] === undefined) throw new Error('a query for what the server has returned no row');
  if (!rows[0].installed) throw noCitus();
  const rights = await session.query<Rights>(READ_RIGHTS);
  const { localGroup = 0, coordinator = null, ...may } = rights.rows[0] ?? {};
  if (localGroup !== null && localGroup !== 0) throw notCoordinator(localGroup, coordinator);
  return { ...rows[0], shardLocks: false, maySignal: false, ...may };
}

/** By function, not by version: what counts is what this role may call here. */
const READ_FEATURES = `
  SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL AS installed,
         coalesce((SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'citus'), 'unknown') AS version,
         coalesce(has_function_privilege(
           to_regprocedure('pg_catalog.citus_update_node(integer,text,integer,boolean,integer)'),
           'EXECUTE'), false) AS "updateNode",
         coalesce(has_function_privilege(
           to_regprocedure('pg_catalog.citus_pause_node_within_txn(integer,boolean,integer)'),
           'EXECUTE'), false) AS "pauseNode"`;

/** Ending a session that is no superuser's takes pg_signal_backend; locking a table, its owner. */
const READ_RIGHTS = `
  SELECT r.rolsuper OR pg_has_role('pg_signal_backend', 'USAGE') AS "maySignal",
         coalesce(has_function_privilege(
           to_regprocedure('pg_catalog.lock_shard_metadata(integer,bigint[])'), 'EXECUTE'), false)
           AND NOT EXISTS (
             SELECT
             FROM pg_catalog.pg_dist_partition AS p
             JOIN pg_class AS c ON c.oid = p.logicalrelid
             WHERE NOT pg_has_role(c.relowner, 'USAGE')) AS "shardLocks",
         (SELECT l.groupid FROM pg_catalog.pg_dist_local_group AS l) AS "localGroup",
         ${COORDINATOR_ADDRESS} AS coordinator
  FROM pg_roles AS r
  WHERE r.rolname = current_user`;

/** The names of those that can be used, the best first. */
function chooseStrategies(wanted: StrategyName | 'auto', features: Features): StrategyName[] {
  if (!features.updateNode) {
    throw new DatabaseStateError(
      'NO_UPDATE_NODE',
      'this role may not call citus_update_node: run mpp-controller bootstrap, which grants it to ' +
        'mpp_controller, and make the role a member of mpp_controller',
    );
  }
  if (wanted === 'pause-node' && !features.pauseNode) {
    throw new DatabaseStateError(
      'NO_PAUSE_NODE',
      'this role may not call citus_pause_node_within_txn, which Citus has from 12.1 on: ' +
        'set MPP_STRATEGY to auto or demoted-row, or run mpp-controller bootstrap to grant it',
    );
  }
  if (wanted === 'shard-locks' && !features.shardLocks) {
    throw new DatabaseStateError(
      'NO_SHARD_LOCKS',
      'this role may not lock all distributed tables: make it a member of the roles that own them, ' +
        'or set MPP_STRATEGY to auto, pause-node or demoted-row',
    );
  }
  const has = {
    'shard-locks': features.shardLocks,
    'pause-node': features.pauseNode,
    'demoted-row': true,
  };
  const names = STRATEGIES.map(({ name }) => name);
  // What was asked for comes first; those after it are for a hold that it cannot be used for.
  const from = wanted === 'auto' ? 0 : names.indexOf(wanted);
  return names.slice(from).filter((name) => has[name]);
}

function createHandler(
  { connection }: CitusOptions,
  names: readonly StrategyName[],
  features: Features,
): AbstractMPPHandler {
  const [strategy = 'demoted-row'] = names;
  return {
    strategy,
    means: { strategies: names, maySignal: features.maySignal },
    version: features.version,
    async canHoldAnother(session) {
      if (strategy === 'shard-locks') return true;
      return strategy === 'pause-node' && !(await sharesShards(session));
    },
    readNodes: (db, task) => withMaintenance(connection, () => readNodes(db, task)),
    plan: planTransition,
    apply: applyStep,
    changeBlockers,
    cancelStatement,
    missingRights,
    adviseSettings: adviseSyncInterval,
  };
}

/**
 * Two pauses that want the same shard exclude each other, and with force the second would end the
 * first. Reference tables have a placement everywhere; replicated shards have several.
 */
async function sharesShards(session: ClientBase): Promise<boolean> {
  const { rows } = await session.query<{ shared: boolean }>(SHARES_SHARDS);
  return rows[0]?.shared ?? true;
}

const SHARES_SHARDS = `
  SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition AS p WHERE p.repmodel = 't')
      OR EXISTS (SELECT FROM pg_catalog.pg_dist_placement AS p GROUP BY p.shardid HAVING count(*) > 1) AS shared`;

/** The rule is in the SQL contract, so that a hook has the same answer without this program. */
export async function ignoreReplicationSlot(
  db: Queryable,
  { name, type, database, plugin }: ReplicationSlot,
): Promise<boolean> {
  const { rows } = await db.query<{ ignored: boolean }>(IGNORE_SLOT, [
    name,
    type,
    database,
    plugin,
  ]);
  return rows[0]?.ignored ?? false;
}

const IGNORE_SLOT =
  'SELECT @mpp.mpp_ignore_replication_slot($1::text, $2::text, $3::text, $4::text) AS ignored';

/** Schemas that come and go with Citus: objects of this project there would prevent DROP EXTENSION. */
const OWN_SCHEMAS: ReadonlySet<string> = new Set([
  'citus',
  'citus_internal',
  'columnar',
  'columnar_internal',
]);

/** @throws ConfigError when the control table would be put among the objects of Citus. */
export function validateConfig({ schema }: MPPSettings): void {
  if (!OWN_SCHEMAS.has(schema)) return;
  throw new ConfigError(
    `MPP_SCHEMA cannot be ${JSON.stringify(schema)}, which belongs to Citus; give another schema, such as public`,
  );
}

/**
 * Prepares a session for asking its node: what cannot change while the server runs is read once.
 *
 * @param session in the Citus database of the node.
 */
export async function prepareAsking(session: ClientBase): Promise<AskNode> {
  const { rows } = await session.query<{
    startedAt: string;
    maySeeSystem: boolean;
    maySeeGroup: boolean;
  }>(PREPARE);
  const [node] = rows;
  if (node === undefined) throw new Error('the statement PREPARE returns one row');
  const systemIdentifier = node.maySeeSystem ? await readSystemIdentifier(session) : null;
  const text = node.maySeeGroup ? ASK_WITH_GROUP : ASK;
  return async () => {
    const answer = await session.query<
      Pick<NodeAnswer, 'inRecovery' | 'timeline'> & { localGroup?: number | null }
    >(text);
    const [row] = answer.rows;
    if (row === undefined) throw new Error('the statement ASK returns one row');
    const { localGroup = null, ...rest } = row;
    return checked({ ...rest, localGroup, systemIdentifier, startedAt: node.startedAt });
  };
}

/** What answers may be no PostgreSQL at all. @throws Error when no PostgreSQL answers so */
function checked(answer: NodeAnswer): NodeAnswer {
  const { inRecovery, timeline, localGroup, systemIdentifier, startedAt } = answer;
  const isWhole = (value: unknown): boolean => value === null || Number.isInteger(value);
  const isNumber = (value: string): boolean => /^\d{1,20}(\.\d{1,9})?$/.test(value);
  if (
    typeof inRecovery === 'boolean' &&
    isWhole(timeline) &&
    isWhole(localGroup) &&
    (systemIdentifier === null || isNumber(systemIdentifier)) &&
    isNumber(startedAt)
  ) {
    return answer;
  }
  throw new Error('the node answers what no PostgreSQL server does');
}

/** One statement finds PostgreSQL's own objects alone from then on, and none that the node's role made. */
const PREPARE = `
  SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
         pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text AS "startedAt",
         pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS "maySeeSystem",
         COALESCE(pg_catalog.has_table_privilege(
           pg_catalog.to_regclass('pg_catalog.pg_dist_local_group'), 'SELECT'), false) AS "maySeeGroup"`;

async function readSystemIdentifier(session: ClientBase): Promise<string | null> {
  const { rows } = await session.query<{ identifier: string }>(SYSTEM_IDENTIFIER);
  return rows[0]?.identifier ?? null;
}

const SYSTEM_IDENTIFIER = 'SELECT system_identifier::text AS identifier FROM pg_control_system()';

/** The timeline is in the name of the WAL file being written: the control file is behind after a promotion. */
const STANDING = `
  SELECT r.recovery AS "inRecovery",
         CASE WHEN NOT r.recovery
           THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
         END AS timeline`;

const IN_RECOVERY = '(SELECT pg_is_in_recovery() AS recovery OFFSET 0) AS r';

const ASK = `${STANDING} FROM ${IN_RECOVERY}`;

const ASK_WITH_GROUP = `${STANDING},
         (SELECT g.groupid FROM pg_catalog.pg_dist_local_group AS g LIMIT 1) AS "localGroup"
  FROM ${IN_RECOVERY}`;
