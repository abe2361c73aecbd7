import type { Queryable } from '../postgres/queryable.js';
import { compareStatement } from './compare-statement.js';

/** A task that the comparison made. */
export interface MadeTask {
  readonly id: string;
  readonly groupid: number;
  /** `host:port` of the primary, as mpp_tasks would list it. */
  readonly node: string;
  readonly secondaries: readonly string[] | null;
}

/** Why nothing is done for a group whose members differ from the catalog. */
export interface Problem {
  readonly groupid: number;
  readonly problem: string;
}

export interface Comparison {
  readonly tasks: readonly MadeTask[];
  readonly problems: readonly Problem[];
}

export interface CompareOptions {
  /** SELECT of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input. */
  readonly nodesQuery: string;
  /** How long a report counts, and how long a node must be down to lose its row, in milliseconds. */
  readonly ttlMs: number;
  /** Whose reports count; those of a source that was switched off would contradict the others. */
  readonly sources: readonly string[];
}

/**
 * Compares what is reported of the cluster (mpp_members) with the catalog, and makes an after_promote
 * task of source `sync` for each group that differs. One statement; nothing is written, and no
 * transaction id taken, when there is nothing to do.
 *
 * @param db a session that finds our objects first.
 */
export async function compareMembers(db: Queryable, options: CompareOptions): Promise<Comparison> {
  const { rows } = await db.query<{
    groupid: number;
    id: string | null;
    node: string | null;
    secondaries: string[] | null;
    problem: string | null;
  }>({
    name: 'mpp-compare',
    text: compareStatement(options.nodesQuery),
    values: [options.ttlMs, options.sources],
  });
  return {
    tasks: rows.flatMap(({ groupid, id, node, secondaries }) =>
      id === null || node === null ? [] : [{ id, groupid, node, secondaries }],
    ),
    problems: rows.flatMap(({ groupid, problem }) =>
      problem === null ? [] : [{ groupid, problem }],
    ),
  };
}
