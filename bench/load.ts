import type { Client } from 'pg';
import type { BusyClient } from '../test/kit/faults/busy-client.js';
import type { Server } from '../test/kit/servers/index.js';
import { keysOfGroup } from '../test/kit/standin/schema.js';
import {
  type FailedStatement,
  startTraffic,
  type Traffic,
  type WorkKind,
} from '../test/kit/traffic/traffic.js';
import { progress } from './bench.js';

/** How many ids clients may use; the longest run inserts a fraction of them. */
export const IDS = 150_000;

const KINDS: readonly WorkKind[] = ['read', 'write', 'transaction'];

/** The ids of one group's rows. */
export class GroupIds {
  readonly #ids: ReadonlySet<number>;

  private constructor(ids: ReadonlySet<number>) {
    this.#ids = ids;
  }

  static async read(coordinator: Client, groupid: number): Promise<GroupIds> {
    const { rows } = await coordinator.query<{ id: number }>(IDS_OF_GROUP, [IDS, groupid]);
    return new GroupIds(new Set(rows.map(({ id }) => id)));
  }

  /** @throws Error when there are no more: clients would look for another for ever. */
  readonly accepts = (id: number): boolean => {
    if (id > IDS) throw new Error(`the clients have used up all ids below ${IDS}`);
    return this.#ids.has(id);
  };
}

const IDS_OF_GROUP = `
  SELECT s.id
  FROM generate_series(1, $1::integer) AS s (id)
  JOIN pg_dist_placement AS p
    ON p.shardid = get_shard_id_for_distribution_column('items', s.id::bigint)
  WHERE p.groupid = $2`;

/** The mixed load: of each kind so many clients, on each entry node. */
export function mixedLoad(
  entries: readonly Server[],
  ids: GroupIds,
  options: { readonly clients: number; readonly thinkMs: number },
): Traffic {
  const { clients, thinkMs } = options;
  return startTraffic({
    connection: entries.map(({ connection }) => connection),
    clients: { readers: clients, writers: clients, transactions: clients },
    thinkMs,
    accepts: ids.accepts,
  });
}

/** Failures of one entry node by kind, for people: `reads/writes/transactions`. */
export function failuresText(failures: readonly FailedStatement[], entry: Server): string {
  const here = failures.filter((failure) => failure.entry === entry.address);
  return KINDS.map((kind) => here.filter((failure) => failure.kind === kind).length).join(' / ');
}

/** The same for programs. */
export function failureCounts(
  failures: readonly FailedStatement[],
  entry: Server,
): Record<WorkKind, number> {
  const here = failures.filter((failure) => failure.entry === entry.address);
  const count = (wanted: WorkKind): number => here.filter(({ kind }) => kind === wanted).length;
  return { read: count('read'), write: count('write'), transaction: count('transaction') };
}

/** Deadlocks that PostgreSQL found on one server, and those that Citus found over several. */
export function deadlocksOf(failures: readonly FailedStatement[]): {
  local: number;
  distributed: number;
} {
  const deadlocks = failures.filter(({ sqlstate }) => sqlstate === '40P01');
  // Citus gives its own the same SQLSTATE; there is nothing else to tell them by.
  const distributed = deadlocks.filter(({ message }) => message.includes('distributed deadlock'));
  return { local: deadlocks.length - distributed.length, distributed: distributed.length };
}

/** What failed, each sentence once with its count, the most frequent first. */
export function reasonsText(failures: readonly FailedStatement[], most = 4): string[] {
  const counts = new Map<string, number>();
  for (const { kind, sqlstate, message } of failures) {
    const line = `${kind}: ${sqlstate ?? 'session lost'} ${message.split('\n')[0] ?? ''}`;
    // Ports, pids and the like would make each one different.
    const key = line.replace(/\d{4,}/g, 'N');
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const lines = [...counts].sort(([, a], [, b]) => b - a);
  const rest = lines.slice(most).reduce((sum, [, count]) => sum + count, 0);
  return [
    ...lines.slice(0, most).map(([line, count]) => `${count} x ${line}`.slice(0, 118)),
    ...(rest > 0 ? [`${rest} x other`] : []),
  ];
}

/** Rows of `items` in a group's shards, which are there afterwards. @returns their ids */
export async function rowsOfGroup(
  coordinator: Client,
  groupid: number,
  count: number,
): Promise<number[]> {
  const ids = await keysOfGroup(coordinator, groupid, count);
  for (const id of ids)
    await coordinator.query('INSERT INTO items VALUES ($1, 0) ON CONFLICT DO NOTHING', [id]);
  return ids;
}

/** Ends clients, and names some of the errors that they stopped with. @returns how many have failed */
export async function stopClients(clients: readonly BusyClient[]): Promise<number> {
  await Promise.all(clients.map((client) => client.stop()));
  const failures = clients.flatMap(({ failure }) => failure ?? []);
  for (const { message } of failures.slice(0, 5)) progress(`failed: ${message}`);
  return failures.length;
}
