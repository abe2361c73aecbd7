import type { AbstractMPP } from '../mpp/abstract.js';
import type { Logger } from '../logger.js';
import type { Queryable } from '../postgres/queryable.js';

/** A part that finds out how the cluster is, and writes it to mpp_members for as long as it runs. */
export interface TopologySource {
  /** Begins in the background. Idempotent. */
  start(): void;
  /** Ends it and closes what it has open. Idempotent. */
  stop(): Promise<void>;
}

/** What every source needs. */
export interface SourceContext {
  readonly db: Queryable;
  /** See AbstractMPP.nodesQuery. */
  readonly nodesQuery: AbstractMPP['nodesQuery'];
  /** MPP_MEMBER_TTL in milliseconds. */
  readonly ttlMs: number;
  /** Ends the source like `stop`. */
  readonly signal: AbortSignal;
  readonly logger: Logger;
  /** Called when what was written may change the comparison. */
  readonly onChange: () => void;
}
