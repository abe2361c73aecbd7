import { sameTargets, type Targets } from './targets.js';
import type { TargetsReader } from './targets-reader.js';

/** What was read longer ago is read again before it is relied on, in milliseconds. */
const FRESH_MS = 20;

/** What a lane is to lock, as far as it knows. */
export class LaneTargets {
  readonly #reader: TargetsReader;
  readonly #groupid: number;
  #found: Targets | undefined;
  /** By performance.now(). */
  #readAt = -Infinity;
  #isGuess = false;
  /** False when it may have changed since it was read. */
  #upToDate = true;

  constructor(reader: TargetsReader, groupid: number) {
    this.#reader = reader;
    this.#groupid = groupid;
  }

  get found(): Targets | undefined {
    return this.#found;
  }

  /** Whether it was read before anybody asked for it here. */
  get isGuess(): boolean {
    return this.#isGuess;
  }

  get upToDate(): boolean {
    return this.#upToDate;
  }

  get isFresh(): boolean {
    return performance.now() - this.#readAt < FRESH_MS;
  }

  async read(): Promise<Targets> {
    const readAt = performance.now();
    this.#found = await this.#reader.read(this.#groupid);
    this.#readAt = readAt;
    this.#isGuess = false;
    return this.#found;
  }

  /** What there was when somebody last looked will do to begin with. */
  async guess(): Promise<Targets> {
    const { readAt, targets } = this.#reader.known(this.#groupid);
    this.#found = await targets;
    this.#readAt = readAt;
    this.#isGuess = true;
    return this.#found;
  }

  forget(): void {
    this.#found = undefined;
  }

  /** Locks have been taken: whether what they were taken for is still so has to be seen. */
  doubt(): void {
    this.#upToDate = this.isFresh;
  }

  /** Looks again. */
  async renew(): Promise<Targets> {
    const before = this.#found;
    const targets = await this.read();
    this.#upToDate = sameTargets(targets, before);
    return targets;
  }
}
