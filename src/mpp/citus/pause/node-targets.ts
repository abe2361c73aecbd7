import { sameTargets, type Targets } from './targets.js';
import type { TargetsReader } from './targets-reader.js';

/** What was read longer ago is read again before it is relied on, in milliseconds. */
const FRESH_MS = 20;

/** What one hold is to lock on one node, as far as it is known. */
export class NodeTargets {
  readonly #reader: TargetsReader;
  readonly #groupid: number;
  #found: Targets | undefined;
  /** By performance.now(). */
  #readAt = -Infinity;
  #isGuess = false;

  constructor(reader: TargetsReader, groupid: number) {
    this.#reader = reader;
    this.#groupid = groupid;
  }

  get found(): Targets | undefined {
    return this.#found;
  }

  /** Whether it was read before the hold asked for it. */
  get isGuess(): boolean {
    return this.#isGuess;
  }

  async read(): Promise<Targets> {
    const readAt = performance.now();
    this.#found = await this.#reader.read(this.#groupid);
    this.#readAt = readAt;
    this.#isGuess = false;
    return this.#found;
  }

  /** The last list that was read will do to begin with. */
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

  /** Whether the list is still the same once its locks are there; it is read again if that was a while ago. */
  async isCurrent(): Promise<boolean> {
    if (performance.now() - this.#readAt < FRESH_MS) return true;
    const before = this.#found;
    return sameTargets(await this.read(), before);
  }
}
