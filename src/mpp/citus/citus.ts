import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';
import type { AbstractMPP, AbstractMPPHandler } from '../abstract.js';
import { bootstrap } from './bootstrap.js';
import { validateConfig } from './config.js';
import { applyGucs, currentGucs, planGucs, readGucs } from './gucs.js';
import { applyStep, readNodes } from './nodes.js';
import {
  demotedRow,
  pauseNode,
  pauseShortfall,
  type PauseStrategy,
  type StrategyName,
} from './pauses.js';
import { ignoreReplicationSlot } from './slots.js';
import { planTransition } from './transition.js';

/** What the server offers to this role. */
interface Features {
  readonly installed: boolean;
  readonly version: string;
  readonly updateNode: boolean;
  readonly pauseNode: boolean;
}

/** Citus, as an MPP database. */
export function createCitus(options: { strategy: StrategyName | 'auto' }): AbstractMPP {
  return {
    name: 'citus',
    validateConfig,
    bootstrap,
    async planGucs(session, wanted) {
      const states = await readGucs(session);
      return { states, changes: planGucs(currentGucs(states), wanted) };
    },
    applyGucs,
    ignoreReplicationSlot,
    async inspect(session) {
      const features = await readFeatures(session);
      return createHandler(chooseStrategy(options.strategy, features), features.version);
    },
  };
}

async function readFeatures(session: ClientBase): Promise<Features> {
  const { rows } = await session.query<Features>(READ_FEATURES);
  return rows[0] ?? { installed: false, version: '', updateNode: false, pauseNode: false };
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

function chooseStrategy(wanted: StrategyName | 'auto', features: Features): PauseStrategy {
  if (!features.installed) {
    throw new DatabaseStateError(
      'NO_CITUS',
      'this database has no pg_dist_node: run mpp-controller bootstrap, or name the Citus database',
    );
  }
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
  return wanted !== 'demoted-row' && features.pauseNode ? pauseNode : demotedRow;
}

function createHandler(strategy: PauseStrategy, version: string): AbstractMPPHandler {
  return {
    strategy: strategy.name,
    version,
    holdLocksNodes: !strategy.sideBySide,
    async canHoldAnother(session) {
      return strategy.sideBySide && !(await sharesShards(session));
    },
    readNodes,
    plan: planTransition,
    async pause(session, node, nodes, pause, cooldownMs) {
      if (pause !== 'none') await strategy.pause(session, node, nodes, cooldownMs);
      return pauseShortfall(pause, strategy);
    },
    retarget: (session, held, nodes, target, cooldownMs) =>
      strategy.retarget(session, held, nodes, target, cooldownMs),
    apply: applyStep,
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
