/**
 * How many locks of one server's lock table holds have or are about to take, so that many small ones that
 * are opened together are not more than there is room for. Locks on tables are had in common: not counted.
 */
export class LockSpace {
  readonly #claims = new Map<object, number>();

  claim(holder: object, locks: number): void {
    this.#claims.set(holder, locks);
  }

  release(holder: object): void {
    this.#claims.delete(holder);
  }

  /** What all but this one have claimed. */
  claimedBeside(holder: object): number {
    let sum = 0;
    for (const [other, locks] of this.#claims) if (other !== holder) sum += locks;
    return sum;
  }
}
