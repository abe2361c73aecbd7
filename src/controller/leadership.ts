import { setTimeout as delay } from 'node:timers/promises';
import { randomInt } from 'node:crypto';
import type pg from 'pg';
import { DatabaseStateError } from '../errors.js';
import { sqlState } from '../postgres/sqlstate.js';

/** Whether a controller leads now, or why it does not. */
export type Attempt =
  | { readonly leads: true }
  | {
      readonly leads: false;
      /** What keeps it from leading; undefined while another controller leads. */
      readonly reason: string | undefined;
    };

const LED: Attempt = { leads: false, reason: undefined };

/** How long the controller that led comes first, while its other sessions are there. */
const PRECEDENCE_MS = 2_500;
/** A role without rights may wait for the leader's lock, and gets it: so who has it is read now and then. */
const READ_EVERY_MS = 1_000;
/** A random key that another session has already is as unlikely as it is harmless. */
const KEYS = 3;

/**
 * The leadership of one schema's controllers, as one session sees it.
 *
 * The table mpp_leadership names the leader, and GRANT protects it. That the leader is alive is shown by an
 * advisory lock that its control session has on a random key: PostgreSQL frees it when the session ends,
 * and no other session can take it first. Nothing here waits for a lock of another session.
 */
export class Leadership {
  readonly #client: pg.ClientBase;
  readonly #controller: string;
  /** While this session leads. */
  #key: number | undefined;
  #readAt = -Infinity;
  /** A leader that has lost its control session, and when that was seen first. */
  #former: { readonly key: number; readonly since: number } | undefined;

  constructor(client: pg.ClientBase, controller: string) {
    this.#client = client;
    this.#controller = controller;
  }

  get leads(): boolean {
    return this.#key !== undefined;
  }

  /**
   * Takes the leadership if no controller that is alive has it.
   *
   * @throws DatabaseStateError `OTHER_SCHEMA` when the controller of another schema of this database leads.
   */
  async tryLead(): Promise<Attempt> {
    if (this.leads) return { leads: true };
    const seen = await this.#look();
    if (seen === undefined) return LED;
    if (seen.isLocked) {
      if (performance.now() - this.#readAt < READ_EVERY_MS) return LED;
      this.#readAt = performance.now();
      if (await this.#isLed()) return LED;
    }
    if (await this.#comesFirst(seen)) {
      return { leads: false, reason: 'the controller that led has lost its control session only' };
    }
    const older = await readBlockers(this.#client, 'older');
    if (older.length > 0) return { leads: false, reason: describeBlockers(older) };
    return this.#take(seen.key);
  }

  /** Takes the leadership back from an own control session that was lost, at once. */
  async regain(): Promise<Attempt> {
    return this.#take(null);
  }

  /**
   * Whether this session is that of the leader still.
   *
   * @returns undefined if so, else what has happened.
   */
  async lostBecause(): Promise<string | undefined> {
    const { rows } = await this.#client.query<{
      controller: string | null;
      mine: boolean;
      counts: boolean;
    }>({
      name: 'mpp-still-leads',
      text: STILL_LEADS,
      values: [this.#controller, this.#key ?? null],
    });
    const [row] = rows;
    if (row?.mine !== true) {
      return `mpp_leadership names ${row?.controller ?? 'no controller'} as the leader now`;
    }
    return row.counts
      ? undefined
      : 'the role of DATABASE_URL is no member of mpp_controller any more';
  }

  /** Gives the leadership back, so that the next controller need not wait. */
  async resign(): Promise<void> {
    if (this.#key === undefined) return;
    const key = this.#key;
    this.#key = undefined;
    await this.#client.query(RESIGN, [this.#controller, key]);
  }

  /** Undefined when mpp_leadership had lost its row. */
  async #look(): Promise<
    { controller: string | null; key: number | null; isLocked: boolean } | undefined
  > {
    const { rows } = await this.#client.query<{
      controller: string | null;
      key: number | null;
      isLocked: boolean;
    }>({ name: 'mpp-look-leadership', text: LOOK });
    if (rows[0] === undefined) await this.#client.query(RESTORE);
    return rows[0];
  }

  async #isLed(): Promise<boolean> {
    const { rows } = await this.#client.query<{ pid: number | null }>({
      name: 'mpp-leader-pid',
      text: 'SELECT @mpp.mpp_leader_pid() AS pid',
    });
    return (rows[0]?.pid ?? null) !== null;
  }

  /**
   * A controller that has lost its control session alone has its holds still: they would be lost if
   * another one led. Its process is alive while its other sessions are.
   */
  async #comesFirst({
    controller,
    key,
  }: {
    controller: string | null;
    key: number | null;
  }): Promise<boolean> {
    if (controller === null || key === null || controller === this.#controller) return false;
    const now = performance.now();
    if (this.#former?.key !== key) this.#former = { key, since: now };
    if (now - this.#former.since >= PRECEDENCE_MS) return false;
    const { rowCount } = await this.#client.query({ name: 'mpp-former', text: OTHER_SESSIONS });
    return (rowCount ?? 0) > 0;
  }

  /** @param key of the leader that was seen to be gone; no other leader's place is taken. */
  async #take(key: number | null): Promise<Attempt> {
    const own = await this.#lockKey();
    if (own === undefined) return { leads: false, reason: 'no lock for a leader could be had' };
    let leads = false;
    try {
      if (!(await settleWithOthers(this.#client, own, () => this.#unlock(own)))) return LED;
      leads = await this.#record(own.key, key);
      if (!leads) return { leads: false, reason: await this.#whyNot() };
      this.#key = own.key;
      this.#former = undefined;
      return { leads: true };
    } finally {
      if (!leads) await this.#unlock(own);
    }
  }

  async #lockKey(): Promise<OwnLock | undefined> {
    for (let attempt = 0; attempt < KEYS; attempt += 1) {
      const { rows } = await this.#client.query<{ locked: boolean; lockClass: number }>(LOCK, [
        randomInt(1, 2 ** 31 - 1),
      ]);
      const [row] = rows as { locked: boolean; lockClass: number; key: number }[];
      if (row?.locked) return { key: row.key, lockClass: row.lockClass, isHeld: true };
    }
    return undefined;
  }

  async #unlock(own: OwnLock): Promise<void> {
    if (!own.isHeld) return;
    own.isHeld = false;
    await this.#client.query(UNLOCK, [own.key]);
  }

  async #record(own: number, key: number | null): Promise<boolean> {
    try {
      const { rowCount } = await this.#client.query(TAKE, [this.#controller, own, key]);
      return rowCount === 1;
    } catch (error) {
      // LOCK TABLE, or another controller that was faster where the role's transactions are serializable.
      if (['55P03', '40001'].includes(sqlState(error) ?? '')) return false;
      throw error;
    }
  }

  async #whyNot(): Promise<string | undefined> {
    const rows = await readBlockers(this.#client, 'row');
    return rows.length > 0 ? describeBlockers(rows) : undefined;
  }
}

/** The lock lasts as long as this statement: it only tells whether another session has it. */
const LOOK = `
  SELECT l.controller, l.key,
         NOT coalesce(pg_try_advisory_xact_lock_shared(@mpp.mpp_leader_lock_class(), l.key), true) AS "isLocked"
  FROM @mpp.mpp_leadership AS l`;

const RESTORE = `
  INSERT INTO @mpp.mpp_leadership DEFAULT VALUES
  ON CONFLICT DO NOTHING`;

const LOCK = `
  SELECT c.class AS "lockClass", $1::integer AS key, pg_try_advisory_lock(c.class, $1::integer) AS locked
  FROM (SELECT @mpp.mpp_leader_lock_class() AS class OFFSET 0) AS c`;

const UNLOCK = 'SELECT pg_advisory_unlock(@mpp.mpp_leader_lock_class(), $1::integer)';

/**
 * Locks the row, unless another session has: that one is not waited for. A row that another controller
 * has taken meanwhile is checked again as it is then, so one of many wins.
 */
const TAKE = `
  WITH locked AS MATERIALIZED (
    SELECT l.one FROM @mpp.mpp_leadership AS l FOR UPDATE SKIP LOCKED
  )
  UPDATE @mpp.mpp_leadership AS l
  SET controller = $1, backend_pid = pg_backend_pid(), key = $2, since = clock_timestamp()
  FROM locked
  WHERE l.one = locked.one
    AND (l.controller = $1
         OR (l.key IS NOT DISTINCT FROM $3::integer
             AND NOT coalesce(@mpp.mpp_has_leader_lock(l.backend_pid, l.key), false)))`;

const RESIGN = `
  UPDATE @mpp.mpp_leadership AS l
  SET controller = NULL, backend_pid = NULL, key = NULL, since = NULL
  WHERE l.one IN (SELECT m.one FROM @mpp.mpp_leadership AS m FOR UPDATE SKIP LOCKED)
    AND l.controller = $1 AND l.key = $2`;

const STILL_LEADS = `
  SELECT l.controller,
         coalesce(l.controller = $1 AND l.key = $2 AND l.backend_pid = pg_backend_pid(), false) AS mine,
         @mpp.mpp_is_controller_session(pg_backend_pid()) AS counts
  FROM @mpp.mpp_leadership AS l`;

/** Those that only a controller has that leads; its control session is none of them. */
const OTHER_SESSIONS = `
  SELECT
  FROM pg_stat_get_activity(NULL) AS a
  WHERE a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND a.application_name ~ '^mpp-controller (queue|listen|group)'
    AND pg_has_role(a.usesysid, 'mpp_controller', 'MEMBER')
  LIMIT 1`;

/** A session that keeps a controller from taking the leadership. */
export interface Blocker {
  readonly pid: number;
  readonly role: string | null;
  readonly application: string;
  readonly holds: string;
  /** A leader of a version before mpp_leadership, the leader of another schema, or a lock on the table. */
  readonly kind: 'older' | 'schema' | 'row';
  readonly lockClass: number | null;
}

/** The lock of a session that leads, or is about to. */
export interface OwnLock {
  readonly key: number;
  readonly lockClass: number;
  isHeld: boolean;
}

/** How long the controllers of two schemas may take to find out which of them gives way. */
const SETTLE_MS = 1_000;
const LOOK_MS = 50;

export async function readBlockers(
  client: pg.ClientBase,
  kind: Blocker['kind'],
): Promise<Blocker[]> {
  const { rows } = await client.query<Blocker>({
    name: 'mpp-blockers',
    text: BLOCKERS,
    values: [kind],
  });
  return rows;
}

const BLOCKERS = `
  SELECT b.pid, b.role, b.application, b.holds, b.kind, b.lock_class AS "lockClass"
  FROM @mpp.mpp_leadership_blockers() AS b
  WHERE b.kind = $1`;

export function describeBlockers(blockers: readonly Blocker[]): string {
  return blockers
    .map(
      ({ pid, role, application, holds }) =>
        `pid ${pid} (role ${role ?? 'unknown'}, application ${application}) holds ${holds}`,
    )
    .join('; ');
}

/** @throws DatabaseStateError `OTHER_SCHEMA` when the controller of another schema leads in this database. */
export async function refuseOtherSchema(client: pg.ClientBase): Promise<void> {
  const [other] = await readBlockers(client, 'schema');
  if (other !== undefined && !(await isGoneSoon(client, other))) throw otherSchema(other);
}

/**
 * Two controllers of different schemas would change one pg_dist_node. Each has its lock before it looks,
 * so at least one sees the other. One that leads does not look any more; of two that are about to, the
 * one with the higher class gives way.
 *
 * @param own this session's lock
 * @param unlock gives it up
 * @returns false when this one has given way; it may try again.
 * @throws DatabaseStateError `OTHER_SCHEMA` when the other one stays.
 */
export async function settleWithOthers(
  client: pg.ClientBase,
  own: OwnLock,
  unlock: () => Promise<void>,
): Promise<boolean> {
  const [other] = await readBlockers(client, 'schema');
  if (other === undefined) return true;
  const givesWay = own.lockClass > (other.lockClass ?? 0);
  if (givesWay) await unlock();
  if (!(await isGoneSoon(client, other))) throw otherSchema(other);
  return !givesWay && (await readBlockers(client, 'schema')).length === 0;
}

async function isGoneSoon(client: pg.ClientBase, other: Blocker): Promise<boolean> {
  const until = performance.now() + SETTLE_MS;
  while (performance.now() < until) {
    await delay(LOOK_MS);
    if (!(await readBlockers(client, 'schema')).some(({ pid }) => pid === other.pid)) return true;
  }
  return false;
}

function otherSchema(other: Blocker): DatabaseStateError {
  return new DatabaseStateError(
    'OTHER_SCHEMA',
    `${describeBlockers([other])}: two controllers would change one pg_dist_node; stop that one, or ` +
      'set MPP_SCHEMA to its schema',
  );
}
