/** Locks that are taken, and given back, together. */
export interface LockUnit {
  /** Names it among the units of its session. */
  readonly key: string;
  /** The statement that takes them; it waits for as long as it must. */
  readonly text: string;
  readonly values?: readonly unknown[];
  /** What is locked, where others of ours may want the same; of a unit with parts, its parts say it. */
  readonly things?: readonly string[];
  /** See lotOf. */
  readonly lot?: number;
  /** True for a statement that fails with 55P03 rather than wait; it is not tried again then. */
  readonly once?: true;
  /** True when nobody's session may be ended for it. */
  readonly sparing?: true;
  /** The same locks in smaller units; for use once somebody was in the way. */
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

/** Whether these are the keys of all units, and perhaps of others. */
export function areKeysOf(units: readonly LockUnit[], keys: readonly string[]): boolean {
  const known = new Set(keys);
  return units.flatMap(keysOf).every((key) => known.has(key));
}

export function hasKeyOf(unit: LockUnit, keys: ReadonlySet<string>): boolean {
  return keysOf(unit).some((key) => keys.has(key));
}

/** How many lots there are. */
export const LOTS = 64;

/**
 * The lot of a thing. Units that lock the same, in whatever mode and bundled with whatever else, must be
 * taken by the same session of a team, or its sessions would wait for one another: so one session takes all
 * of a lot, and what is bundled is of one lot.
 */
export function lotOf(thing: string): number {
  let hash = 0;
  for (const char of thing) hash = (Math.imul(hash, 31) + (char.codePointAt(0) ?? 0)) >>> 0;
  return hash % LOTS;
}

/** All that units lock, where others of ours may want the same. */
export function thingsOf(units: readonly LockUnit[]): Set<string> {
  return new Set(units.flatMap(partsOf).flatMap(({ things = [] }) => things));
}

/** The lots of units; one without any is like nothing but itself. */
export function lotsOf(units: readonly LockUnit[]): Set<number | string> {
  return new Set(units.flatMap(partsOf).map(({ lot, key }) => lot ?? key));
}
