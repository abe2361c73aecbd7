import type { Pool } from 'pg';
import { readTargets, type Targets } from './targets.js';

interface Batch {
  readonly groupids: Set<number>;
  readonly found: Promise<ReadonlyMap<number, Targets>>;
}

/**
 * Reads what there is to lock on one node, one read at a time: holds that are opened together ask for it
 * at the same moment, and the read costs more than all that follows where the catalogs are large.
 */
export class TargetsReader {
  readonly #sessions: Pool;
  /** What is read next: it is not asked for yet, so whoever joins it gets what is there from now on. */
  #next: Batch | undefined;
  #last: Promise<unknown> = Promise.resolve();

  /** @param sessions with the node */
  constructor(sessions: Pool) {
    this.#sessions = sessions;
  }

  async read(groupid: number): Promise<Targets> {
    const batch = (this.#next ??= this.#begin());
    batch.groupids.add(groupid);
    const targets = (await batch.found).get(groupid);
    if (targets === undefined) throw new Error('a query for what to lock returned no row');
    return targets;
  }

  #begin(): Batch {
    const groupids = new Set<number>();
    const found = this.#last.then(() => {
      this.#next = undefined;
      return readTargets(this.#sessions, [...groupids]);
    });
    this.#last = found.catch(() => undefined);
    return { groupids, found };
  }
}
