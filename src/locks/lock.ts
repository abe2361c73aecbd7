/** A lock that one statement takes, and that is given up by a rollback to the savepoint before it. */
export interface Lock {
  /** Tells it from every other lock of its node: the mode and the tables, or the shards. */
  readonly key: string;
  /**
   * Takes it, and waits for as long as that takes. Without parameters: after a statement with some, the
   * portal keeps its snapshot for as long as the session is idle.
   */
  readonly text: string;
  /** The same, but fails with 55P03 where it would have to wait; undefined where there is no such form. */
  readonly nowait?: string;
  /** The tables that it locks, quoted; of a lock on something else, none. */
  readonly tables: ReadonlySet<string>;
  /** Of two locks on the same tables the stronger one covers the weaker. */
  readonly strength: number;
  /**
   * Locks of one conflict group are taken by one session: two of the controller's own sessions would wait
   * for each other.
   */
  readonly conflictGroup: string;
}

/** Modes of LOCK TABLE that are used here, and how strong they are. */
const MODES = { EXCLUSIVE: 1, 'ACCESS EXCLUSIVE': 2 } as const;

type TableMode = keyof typeof MODES;

/** More tables than that are locked in so many bundles. */
const MOST_LOCKS = 64;

/** Locks on tables, one for each table, or with more than 64 tables one for each bundle of them. */
export function tableLocks(tables: Iterable<string>, mode: TableMode): Lock[] {
  const bundles = new Map<string, string[]>();
  const all = [...tables];
  for (const table of all) {
    const bundle = all.length > MOST_LOCKS ? conflictGroupOf(table) : table;
    if (!bundles.get(bundle)?.push(table)) bundles.set(bundle, [table]);
  }
  return [...bundles.values()].map((names) => {
    // ONLY: partitions are distributed tables themselves, so they are in the list.
    const text = `LOCK TABLE ${names.map((name) => `ONLY ${name}`).join(', ')} IN ${mode} MODE`;
    return {
      key: `${mode} ${names.join(', ')}`,
      text,
      nowait: `${text} NOWAIT`,
      tables: new Set(names),
      strength: MODES[mode],
      conflictGroup: conflictGroupOf(names[0] ?? ''),
    };
  });
}

/** A lock that conflicts with no other one of the same controller. */
export function otherLock(key: string, text: string): Lock {
  return { key, text, tables: new Set(), strength: 0, conflictGroup: key };
}

/** Divides what is locked by identifiers among at most 64 locks. */
export function bundlesOf<T>(things: readonly T[]): T[][] {
  const size = Math.ceil(things.length / MOST_LOCKS);
  const bundles: T[][] = [];
  for (let at = 0; at < things.length; at += size) bundles.push(things.slice(at, at + size));
  return bundles;
}

/** Whether who has the first lock needs not take the second. */
export function covers(lock: Lock, other: Lock): boolean {
  if (lock.key === other.key) return true;
  if (other.tables.size === 0 || lock.strength < other.strength) return false;
  for (const table of other.tables) if (!lock.tables.has(table)) return false;
  return true;
}

/**
 * Tables that are bundled, and any bundle that has one of them in another mode, must be of one conflict
 * group, whichever other tables are in the bundle: so it depends on the table alone.
 */
function conflictGroupOf(table: string): string {
  let hash = 0;
  for (const char of table) hash = (Math.imul(hash, 31) + (char.codePointAt(0) ?? 0)) >>> 0;
  return `tables ${hash % MOST_LOCKS}`;
}
