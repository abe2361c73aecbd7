import { hasKeyOf, keysOf, partsOf, type LockUnit } from './lock-unit.js';

/** What a session is to take, the next one first. */
export class WantList {
  #units: LockUnit[] = [];

  get units(): readonly LockUnit[] {
    return this.#units;
  }

  get next(): LockUnit | undefined {
    return this.#units[0];
  }

  /**
   * Adds what is neither taken nor wanted yet. What is wanted once may be refused: whoever wants to wait
   * for the same must not share that.
   */
  add(units: readonly LockUnit[], taken: readonly string[]): void {
    const waited = this.#units.filter((unit) => !unit.once);
    const known = new Set([...taken, ...waited.flatMap(keysOf)]);
    const isNew = (unit: LockUnit): boolean => !hasKeyOf(unit, known);
    this.#units.push(
      ...units.flatMap((unit) => (isNew(unit) ? unit : partsOf(unit).filter(isNew))),
    );
  }

  remove(gone: LockUnit): void {
    this.#units = this.#units.filter((unit) => unit !== gone);
  }

  removeKeys(keys: ReadonlySet<string>): void {
    this.#units = this.#units.filter((unit) => !hasKeyOf(unit, keys));
  }

  /** Somebody was in the way: in small units from now on, and without what was to be had at once. */
  split(): void {
    this.#units = this.#units.filter(({ once }) => !once).flatMap(partsOf);
  }

  /** Wants again what was given back, from this place on. */
  insert(units: readonly LockUnit[], place: number): void {
    this.#units.splice(place, 0, ...units.flatMap(partsOf));
  }

  clear(): void {
    this.#units = [];
  }
}
