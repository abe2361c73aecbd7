import type { Client } from 'pg';
import type { Address } from '../src/address.js';
import type { ReportInput } from '../test/kit/harness.js';
import type { Group } from '../test/kit/servers/index.js';
import { commitTime, type Reports } from './reports.js';

/** What moves a group's primary in pg_dist_node, and makes its traffic wait meanwhile. */
export interface Switcher {
  /** What does not wait in the last hold though it was asked for, or null. */
  readonly reason: string | null;
  /** The primary is about to stop. Resolves once its traffic waits. */
  hold(group: Group): Promise<void>;
  /** The standby is about to be promoted. */
  announce(group: Group): Promise<void>;
  /** The group's primary is a new one. Resolves once the row is committed. */
  commit(group: Group): Promise<void>;
  /**
   * When the last commit happened, in milliseconds since 1970 by the coordinator's clock.
   *
   * @throws Error when the coordinator runs without track_commit_timestamp
   */
  committedAt(): Promise<number>;
}

/** When the steps of a switchover were done, by performance.now(). */
export interface SwitchTimes {
  readonly beganAt: number;
  readonly heldAt: number;
  readonly committedAt: number;
  /** What announcing and committing took, in milliseconds. */
  readonly announceMs: number;
  readonly commitMs: number;
  /** What stopping and promoting took, in milliseconds. */
  readonly workMs: number;
}

/** A planned switchover: hold, stop, announce, promote, commit. */
export async function switchOver(switcher: Switcher, group: Group): Promise<SwitchTimes> {
  const beganAt = performance.now();
  await switcher.hold(group);
  const heldAt = performance.now();
  await group.primary.stop('fast');
  const stoppedAt = performance.now();
  await switcher.announce(group);
  const announcedAt = performance.now();
  await group.promoteStandby();
  const promotedAt = performance.now();
  await switcher.commit(group);
  const committedAt = performance.now();
  return {
    beganAt,
    heldAt,
    committedAt,
    announceMs: announcedAt - stoppedAt,
    commitMs: committedAt - promotedAt,
    workMs: stoppedAt - heldAt + promotedAt - announcedAt,
  };
}

/** Through mpp_tasks. */
export class ByController implements Switcher {
  readonly #reports: Reports;
  readonly #pause: NonNullable<ReportInput['pause']>;

  #reason: string | null = null;
  #promoted = '';

  constructor(reports: Reports, pause: NonNullable<ReportInput['pause']>) {
    this.#reports = reports;
    this.#pause = pause;
  }

  get reason(): string | null {
    return this.#reason;
  }

  async hold({ groupid, primary }: Group): Promise<void> {
    const report = { event: 'before_demote', groupid, node: primary, pause: this.#pause } as const;
    const { id } = await this.#reports.send(report, 'holding');
    this.#reason = await this.#reports.reason(id);
  }

  async announce({ groupid, standby }: Group): Promise<void> {
    // Said again: a report that does not say takes the setting.
    const report = { event: 'before_promote', groupid, node: standby, pause: this.#pause } as const;
    await this.#reports.send(report, 'holding');
  }

  async commit({ groupid, primary }: Group): Promise<void> {
    const report = { event: 'after_promote', groupid, node: primary } as const;
    this.#promoted = (await this.#reports.send(report, 'done')).id;
  }

  async committedAt(): Promise<number> {
    return this.#reports.committedAt(this.#promoted);
  }
}

const COOLDOWN_MS = 10_000;
const TRIES = 10;

/**
 * The statements of Patroni's coordinator side, by hand: the primary's row gets a name that no node has
 * in a transaction on the coordinator, which ends with the new address. Nothing drains, no other node
 * pauses, reads go on. A hold that dies of a deadlock is missing, and the stop goes on without it.
 */
export class ByHand implements Switcher {
  readonly reason = null;
  readonly #session: Client;
  #held = false;
  #promoted = '';
  #holdsLost = 0;

  constructor(session: Client) {
    this.#session = session;
  }

  /** Holds that were the victim of a deadlock or of a timeout. */
  get holdsLost(): number {
    return this.#holdsLost;
  }

  async hold(group: Group): Promise<void> {
    try {
      await this.#demote(group.groupid, group.primary);
      this.#held = true;
    } catch {
      this.#holdsLost += 1;
      await this.#session.query('ROLLBACK');
    }
  }

  announce(): Promise<void> {
    return Promise.resolve();
  }

  /** @throws Error when it cannot be done in a few tries. */
  async commit(group: Group): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        // The group's standby is by now the server that was its primary.
        if (!this.#held) await this.#demote(group.groupid, group.standby);
        await this.#promote(group);
        return;
      } catch (error) {
        if (attempt === TRIES) throw error;
        await this.#session.query('ROLLBACK');
      } finally {
        this.#held = false;
      }
    }
  }

  async committedAt(): Promise<number> {
    return commitTime(this.#session, COMMIT_TIME, this.#promoted);
  }

  async #demote(groupid: number, { host, port }: Address): Promise<void> {
    await this.#session.query('BEGIN');
    await this.#update(groupid, 'primary', { host: `${host}-demoted`, port });
  }

  async #promote({ groupid, primary, standby }: Group): Promise<void> {
    await this.#update(groupid, 'secondary', standby);
    await this.#update(groupid, 'primary', primary);
    const { rows } = await this.#session.query<{ xid: string }>(CURRENT_XID);
    this.#promoted = rows[0]?.xid ?? '';
    await this.#session.query('COMMIT');
  }

  async #update(
    groupid: number,
    role: 'primary' | 'secondary',
    { host, port }: Address,
  ): Promise<void> {
    await this.#session.query(UPDATE, [groupid, role, host, port, COOLDOWN_MS]);
  }
}

const UPDATE = `
  SELECT citus_update_node(nodeid, $3, $4, true, $5)
  FROM pg_dist_node
  WHERE groupid = $1 AND noderole::text = $2 AND nodecluster = 'default'`;

const CURRENT_XID = 'SELECT pg_current_xact_id()::xid::text AS xid';

const COMMIT_TIME = `
  SELECT (extract(epoch FROM pg_xact_commit_timestamp($1::text::xid)) * 1000)::float8 AS at`;
