import type { Watch } from '../../../drain/watch.js';
import type { Transaction } from '../../../postgres/transaction.js';
import type { LaneOrder, OwnLocks } from './lane-order.js';
import type { TrafficNode } from './node.js';
import { beginWatched, boundsFor, inTime, release } from './shared-set.js';
import { shardLocks } from './targets.js';

/** The session in which a lane locks what is the group's alone, opened when it is needed first. */
export class LaneSession {
  readonly #node: TrafficNode;
  readonly #watch: Watch;
  readonly #order: LaneOrder;
  readonly #signal: AbortSignal;
  readonly #given: OwnLocks | undefined;
  #transaction: Transaction | undefined;
  #opening: Promise<OwnLocks> | undefined;
  #opened: OwnLocks | undefined;

  /**
   * @param signal aborted once the lane is given up
   * @param given the group's own, on the coordinator: what commits the change, so not ended here
   */
  constructor(
    node: TrafficNode,
    watch: Watch,
    order: LaneOrder,
    signal: AbortSignal,
    given: OwnLocks | undefined,
  ) {
    this.#node = node;
    this.#watch = watch;
    this.#order = order;
    this.#signal = signal;
    this.#given = given;
  }

  /** Whether the change will be committed in it. */
  get commits(): boolean {
    return this.#given !== undefined;
  }

  /** See OwnLocks. */
  get coversShared(): boolean {
    return this.#given?.coversShared === true;
  }

  /** @throws when there is no session with the server. */
  async open(): Promise<OwnLocks> {
    if (this.#given) return (this.#opened = this.#given);
    return (this.#opening ??= this.#open());
  }

  /** It may last so many milliseconds from now. */
  async extend(remainingMs: number): Promise<void> {
    await this.#transaction?.bound(boundsFor(remainingMs));
  }

  /** What is still being opened ends by itself: a node that is silent must not be waited for here. */
  async release(): Promise<void> {
    const [transaction, own] = [this.#transaction, this.#opened];
    if (transaction && own) await release(transaction, own.locks);
    else if (own) await inTime(own.locks.stop());
  }

  async #open(): Promise<OwnLocks> {
    const { groupid, remainingMs, onLost } = this.#order;
    const { sessions, server } = this.#node;
    const purpose = `pause of group ${groupid}`;
    const bounds = boundsFor(remainingMs);
    const { transaction, locks } = await beginWatched(
      server,
      this.#watch,
      sessions,
      bounds,
      purpose,
    );
    if (this.#signal.aborted) {
      await transaction.rollback();
      this.#signal.throwIfAborted();
    }
    this.#transaction = transaction;
    transaction.onLost(() => {
      transaction.destroy();
      onLost();
    });
    const unitsFor: OwnLocks['unitsFor'] = ({ shards }) => shardLocks(shards);
    return (this.#opened = { locks, coversShared: false, unitsFor });
  }
}
