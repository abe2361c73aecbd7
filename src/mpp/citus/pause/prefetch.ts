import { QUEUES, type LockHolder } from '../../../locks/lock-table.js';
import type { LikelyPause, Prefetch } from '../../abstract.js';
import type { PauseNode, PrimaryRow } from './node.js';

/** A transaction that is shared with a hold must not be bounded by less than the hold needs. */
const LONGER_MS = 1_000;

/** The sessions and reads of a hold that may come to be. */
export class Prefetched implements Prefetch {
  /** Undefined when they could not be read. */
  readonly primaries: Promise<readonly PrimaryRow[] | undefined>;
  /** When they were asked for, by performance.now(). */
  readonly readAt = performance.now();
  #isOver = false;
  readonly #holders: LockHolder[] = [];

  /**
   * @param read the primaries of all groups
   * @param entriesOf the nodes where traffic of the group may have to wait
   */
  constructor(
    likely: LikelyPause,
    read: Promise<readonly PrimaryRow[]>,
    entriesOf: (primaries: readonly PrimaryRow[]) => readonly PauseNode[],
  ) {
    this.primaries = read.then(
      (primaries) => {
        for (const node of entriesOf(primaries)) this.#prepare(node, likely);
        return primaries;
      },
      () => undefined,
    );
  }

  end(): void {
    this.#isOver = true;
    for (const holder of this.#holders.splice(0)) void holder.leave();
  }

  #prepare(node: PauseNode, { groupid, remainingMs }: LikelyPause): void {
    if (this.#isOver) return;
    // What fails here fails again where it is needed, and is reported there.
    node.targets.known(groupid).targets.catch(() => undefined);
    const holder = node.locks.join({
      purpose: `pause of group ${groupid}`,
      remainingMs: remainingMs + LONGER_MS,
      onLost: () => undefined,
      onFailure: () => undefined,
    });
    this.#holders.push(holder);
    holder.open(QUEUES).catch(() => undefined);
  }
}
