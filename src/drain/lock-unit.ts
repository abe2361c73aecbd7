/** Locks that are taken, and given back, together. */
export interface LockUnit {
  /** Names it among the units of its session. */
  readonly key: string;
  /** The statement that takes them; it waits for as long as it must. */
  readonly text: string;
  readonly values?: readonly unknown[];
  /** True for a statement that fails with 55P03 rather than wait; it is not tried again then. */
  readonly once?: true;
  /** True when nobody's session may be ended for it. */
  readonly sparing?: true;
  /** The same locks in smaller units, in the same order; for use once somebody was in the way. */
  readonly parts?: readonly LockUnit[];
}

/** The units that stand for it once somebody was in the way. */
export function partsOf(unit: LockUnit): readonly LockUnit[] {
  return unit.parts ?? [unit];
}

/** Names of the smallest units that it has. */
export function keysOf(unit: LockUnit): string[] {
  return unit.parts ? unit.parts.map(({ key }) => key) : [unit.key];
}
