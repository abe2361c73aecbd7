import type { Pool } from 'pg';
import type { Queryable } from '../../../postgres/queries.js';
import { formatAddress, type Address } from '../../../address.js';
import { readTargets, sameTargets, type Targets } from './targets.js';

/** What there was to lock, and when that was read, by performance.now(). */
interface Known {
  readonly readAt: number;
  readonly targets: Promise<Targets>;
}

/** How old what is known may get, in milliseconds. */
const KNOWN_MS = 60_000;

interface Batch {
  readonly groupids: Set<number>;
  readonly found: Promise<ReadonlyMap<number, Targets>>;
}

/**
 * Reads what there is to lock on one node, one read at a time: holds that are opened together ask for it
 * at the same moment, and the read costs more than all that follows where the catalogs are large.
 */
export class TargetsReader {
  readonly #sessions: Pool;
  /** What is read next: it is not asked for yet, so a caller that joins it gets what is there from now on. */
  #next: Batch | undefined;
  #last: Promise<unknown> = Promise.resolve();
  readonly #known = new Map<number, Known>();
  /** By performance.now(). */
  #refreshAt = -Infinity;

  /** @param sessions with the node */
  constructor(sessions: Pool) {
    this.#sessions = sessions;
  }

  /** What there is from now on. */
  async read(groupid: number): Promise<Targets> {
    return this.#begun(groupid).targets;
  }

  /** What was read last or is being read, to begin with: it may not be so any more. */
  known(groupid: number): Known {
    return this.#known.get(groupid) ?? this.#begun(groupid);
  }

  /** Has something known of these groups, not too old, at the cost of a thousandth of the time at most. */
  async refresh(groupids: readonly number[]): Promise<void> {
    const began = performance.now();
    if (groupids.length === 0 || began < this.#refreshAt) return;
    await Promise.all(groupids.map((groupid) => this.read(groupid)));
    const now = performance.now();
    this.#refreshAt = now + Math.max(KNOWN_MS, 1_000 * (now - began));
    for (const groupid of this.#known.keys()) {
      if (!groupids.includes(groupid)) this.#known.delete(groupid);
    }
  }

  #begun(groupid: number): Known {
    const batch = (this.#next ??= this.#begin());
    batch.groupids.add(groupid);
    const known = { readAt: performance.now(), targets: only(groupid, batch.found) };
    this.#known.set(groupid, known);
    known.targets.catch(() => {
      if (this.#known.get(groupid) === known) this.#known.delete(groupid);
    });
    return known;
  }

  #begin(): Batch {
    const groupids = new Set<number>();
    const found = this.#last.then(() => {
      this.#next = undefined;
      return readTargets(this.#sessions, [...groupids]);
    });
    this.#last = found.catch(() => undefined);
    return { groupids, found };
  }
}

async function only(groupid: number, found: Batch['found']): Promise<Targets> {
  const targets = (await found).get(groupid);
  if (targets === undefined) throw new Error('a query for what to lock returned no row');
  return targets;
}

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

interface ShardMove {
  readonly pid: string;
  readonly tables: string;
  readonly source: string;
  readonly target: string;
}

/**
 * Shard moves that are under way from or to a node. One that lets clients write (`force_logical`) waits for the
 * writes that a hold pauses; after the switchover its replication slot is on a server that is no primary.
 *
 * @param db a session with the coordinator
 * @returns a sentence for each session that moves shards
 */
export async function readShardMoves(db: Queryable, node: Address): Promise<string[]> {
  const { rows } = await db.query<ShardMove>({
    name: 'mpp-shard-moves',
    text: SHARD_MOVES,
    values: [node.host, node.port],
  });
  return rows.map(
    ({ pid, tables, source, target }) =>
      `a shard move of pid ${pid} (${tables}, from ${source} to ${target}) does not end while ` +
      `${formatAddress(node)} is held: end it with SELECT pg_cancel_backend(${pid}) and ` +
      `CALL citus_cleanup_orphaned_resources()`,
  );
}

/** Locks nothing. Progress 1 is under way. Without a move it reads shared memory alone (0.04 ms). */
const SHARD_MOVES = `
  SELECT m.sessionid::text AS pid, string_agg(DISTINCT m.table_name::text, ', ') AS tables,
         min(format('%s:%s'::text, m.sourcename, m.sourceport)) AS source,
         min(format('%s:%s'::text, m.targetname, m.targetport)) AS target
  FROM pg_catalog.get_rebalance_progress() AS m
  WHERE m.progress = 1
    AND ((m.sourcename, m.sourceport) = ($1::text, $2::integer)
      OR (m.targetname, m.targetport) = ($1::text, $2::integer))
  GROUP BY m.sessionid
  ORDER BY m.sessionid`;
