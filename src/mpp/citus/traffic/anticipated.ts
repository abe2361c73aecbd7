import type { Anticipation, LikelyPause } from '../../abstract.js';
import type { PrimaryRow, TrafficNode } from './node.js';

/** A transaction that is shared with a hold must not be bounded by less than the hold needs. */
const LONGER_MS = 1_000;

/** The sessions and reads of a hold that may come to be. */
export class Anticipated implements Anticipation {
  /** Undefined when they could not be read. */
  readonly primaries: Promise<readonly PrimaryRow[] | undefined>;
  /** When they were asked for, by performance.now(). */
  readonly readAt = performance.now();
  #over = false;
  readonly #leave: (() => Promise<void>)[] = [];

  /**
   * @param read the primaries of all groups
   * @param entriesOf the nodes where traffic of the group may have to wait
   */
  constructor(
    likely: LikelyPause,
    read: Promise<readonly PrimaryRow[]>,
    entriesOf: (primaries: readonly PrimaryRow[]) => readonly TrafficNode[],
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
    this.#over = true;
    for (const leave of this.#leave.splice(0)) void leave();
  }

  #prepare(node: TrafficNode, { groupid, pause, remainingMs }: LikelyPause): void {
    if (this.#over) return;
    // Whatever fails here fails again where it is needed, and is told of there.
    node.targets.known(groupid).targets.catch(() => undefined);
    const common = pause === 'all' ? node.shared : node.gate;
    if (pause === 'writes' && node.holds > 0) return;
    common
      .join(remainingMs + LONGER_MS, () => undefined)
      .then((share) => {
        if (this.#over) return share.leave();
        this.#leave.push(() => share.leave());
        return common.grow();
      })
      .catch(() => undefined);
  }
}
