import type { Client } from 'pg';
import { NODES_QUERY } from '../../src/mpp/citus/nodes.js';
import { compareMembers, type Comparison } from '../../src/topology/compare.js';

/** A member as a test tells of it; times are in seconds before now. */
export interface MemberRow {
  readonly node: string;
  readonly role?: 'primary' | 'secondary';
  readonly state?: string;
  readonly source?: 'table' | 'probe' | 'patroni';
  readonly groupid?: number;
  readonly timeline?: number;
  readonly noloadbalance?: boolean;
  /** How long ago it was reported last. */
  readonly age?: number;
  /** How long ago it became so; as long as `age` if that is more. */
  readonly since?: number;
}

/** A row of pg_dist_node. */
export interface CatalogRow {
  readonly node: string;
  readonly groupid?: number;
  readonly role?: 'primary' | 'secondary';
  readonly cluster?: string;
}

export const TTL_MS = 30_000;

/** Fills mpp_members and pg_dist_node, and compares them as the heartbeat does. */
export class MembersCase {
  readonly #db: Client;

  constructor(db: Client) {
    this.#db = db;
  }

  async clear(): Promise<void> {
    await this.#db.query('DELETE FROM pg_dist_node');
    await this.#db.query('DELETE FROM mpp_members');
    await this.#db.query('DELETE FROM mpp_tasks');
  }

  async catalog(rows: readonly CatalogRow[]): Promise<void> {
    for (const { node, groupid = 1, role = 'primary', cluster = 'default' } of rows) {
      await this.#db.query(
        `INSERT INTO pg_dist_node (groupid, nodename, nodeport, noderole, nodecluster)
         VALUES ($1, $2, 5432, $3::text::noderole, $4)`,
        [groupid, node, role, cluster],
      );
    }
  }

  /** Past its trigger, which would take no times from outside. */
  async members(rows: readonly MemberRow[]): Promise<void> {
    await this.#db.query("SET session_replication_role = 'replica'");
    for (const row of rows) {
      const { age = 0, since = 3_600 } = row;
      await this.#db.query(
        `INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state, timeline,
           noloadbalance, since, reported_at)
         VALUES ($1, $2, 5432, $3, $4, $5, $6, $7, clock_timestamp() - $8 * interval '1 second',
                 clock_timestamp() - $9 * interval '1 second')`,
        [
          row.groupid ?? 1,
          row.node,
          row.source ?? 'probe',
          row.role ?? 'secondary',
          row.state ?? 'running',
          row.timeline ?? null,
          row.noloadbalance ?? false,
          Math.max(age, since),
          age,
        ],
      );
    }
    await this.#db.query("SET session_replication_role = 'origin'");
  }

  async compare(sources = ['table', 'probe', 'patroni']): Promise<Comparison> {
    return compareMembers(this.#db, { nodesQuery: NODES_QUERY, ttlMs: TTL_MS, sources });
  }

  /** The tasks that a comparison makes, as `group: node [secondaries]`. */
  async wishes(): Promise<string[]> {
    const { tasks } = await this.compare();
    return tasks.map(({ groupid, node, secondaries }) => {
      const others = secondaries === null ? 'as they are' : secondaries.join(' ');
      return `${groupid}: ${node} [${others}]`.replaceAll(':5432', '');
    });
  }
}
