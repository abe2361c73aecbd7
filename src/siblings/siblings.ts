import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import type { Settings } from '../config.js';
import { linkSignals } from '../linked-signal.js';
import type { Logger } from '../observe/logger.js';
import { createPool, type PoolOptions } from '../postgres/pool.js';
import type { Queryable } from '../postgres/queryable.js';
import type { Attempt } from '../tasks/finish.js';
import { Loop } from '../topology/loop.js';
import { registerSiblings } from './outbox.js';
import { Sibling } from './sibling.js';
import { judge, lookHere, markHeld } from './waiting.js';

export interface SiblingsOptions extends Pick<PoolOptions, 'identity' | 'onOtherServer'> {
  /** Sessions in our own database. */
  readonly db: Queryable;
  readonly settings: Pick<Settings, 'connection' | 'schema' | 'siblings' | 'pollMs'>;
  readonly logger: Logger;
}

/** A report that is about to be acknowledged: its group's traffic waits here. */
export interface HeldReport extends Attempt {
  readonly groupid: number;
  readonly cooldownMs: number;
  /** Whether it still does. */
  readonly isHeld: () => boolean;
}

/** One statement takes milliseconds; a server that is slower is as good as unreachable. */
const STATEMENT_MS = 5_000;
/** A lock that another session keeps for longer is not waited for: the hold here would wait with it. */
const LOCK_MS = 250;
/** When a group's reporters are told again that were busy. */
const BUSY_MS = 50;
/** At first; then rarer, as each look reads the locks of the whole server. */
const LOOK_MS = 5;
const LOOK_MOST_MS = 50;
/** What a sibling may take beyond its cooldown: as another node of one hold. */
const LATE_MS = 2_000;
/** Of the time that the report has left: whoever waits for its acknowledgement must still be there. */
const MOST_OF_REST = 0.75;

/**
 * The other Citus databases on the same nodes. Reports into ours are copied there, in the order of each
 * group and through any crash: what is to be told stands in a table until it is told.
 */
export class Siblings {
  readonly #options: SiblingsOptions;
  readonly #pools: readonly Pool[];
  readonly #siblings: readonly Sibling[];
  readonly #abort = new AbortController();
  /** One each: a sibling that is slow holds no other up. */
  readonly #loops: readonly Loop[];
  #isStarted = false;

  constructor(options: SiblingsOptions) {
    const { settings, logger, db, identity, onOtherServer } = options;
    this.#options = options;
    this.#pools = settings.siblings.map((database) =>
      createPool(
        { ...settings.connection, database },
        {
          schema: settings.schema,
          purpose: 'sibling',
          max: 4,
          statementTimeoutMs: STATEMENT_MS,
          lockTimeoutMs: LOCK_MS,
          ...(identity && { identity }),
          ...(onOtherServer && { onOtherServer }),
          onIdleError: (error) =>
            logger.debug({ err: error, database }, 'an idle session was lost'),
        },
      ),
    );
    this.#siblings = settings.siblings.map((database, index) => {
      const pool = this.#pools[index];
      if (pool === undefined) throw new Error('a sibling without sessions');
      return new Sibling({
        ...{ database, pool, db, schema: settings.schema },
        onTold: ({ groupid, id }) =>
          logger.debug({ groupid, entry: id, sibling: database }, 'told'),
        onTrouble: (sibling, text, error) => {
          logger.warn(
            { err: error, sibling },
            `database ${sibling} cannot be told of reports: ${text}; it is tried again`,
          );
        },
      });
    });
    this.#loops = this.#siblings.map(
      (sibling, index) =>
        new Loop({
          intervalMs: settings.pollMs,
          signal: this.#abort.signal,
          work: async (signal) => {
            if (!(await sibling.tell(signal)) || signal.aborted) return;
            await delay(BUSY_MS, undefined, { signal }).catch(() => undefined);
            this.#loops[index]?.wake();
          },
        }),
    );
  }

  /** Sessions in each of them. */
  get databases(): readonly { readonly database: string; readonly db: Queryable }[] {
    return this.#siblings;
  }

  /** From now on each report into our database is told to all. Idempotent. */
  async start(): Promise<void> {
    await registerSiblings(this.#options.db, this.#options.settings.siblings);
    for (const loop of this.#loops) loop.start();
    this.#isStarted = true;
  }

  get isStarted(): boolean {
    return this.#isStarted;
  }

  /** Something may have been reported. */
  wake(): void {
    for (const loop of this.#loops) loop.wake();
  }

  async stop(): Promise<void> {
    this.#abort.abort(new Error('the controller is to stop'));
    await Promise.all(this.#loops.map((loop) => loop.stop()));
    await Promise.all(this.#pools.map((pool) => pool.end()));
  }

  /**
   * Waits until the group's traffic waits in every other database as well: not longer than a hold may
   * take to open there or the report allows, nor once another event of the group has been reported, or
   * the traffic here waits no more.
   *
   * @returns a sentence that names where it does not, or null.
   */
  async follow(report: HeldReport, signal: AbortSignal): Promise<string | null> {
    if (this.#siblings.length === 0) return null;
    const remainingMs = await markHeld(this.#options.db, report);
    if (remainingMs === undefined) return null;
    this.wake();
    const began = performance.now();
    const mostMs = Math.min(2 * report.cooldownMs + LATE_MS, MOST_OF_REST * remainingMs);
    const over = linkSignals([signal, this.#abort.signal]);
    try {
      return await this.#followUntil(report, mostMs, began, over.signal);
    } finally {
      over.release();
    }
  }

  async #followUntil(
    report: HeldReport,
    mostMs: number,
    began: number,
    over: AbortSignal,
  ): Promise<string | null> {
    for (;;) {
      const waitedMs = performance.now() - began;
      const here = await lookHere(this.#options.db, report.id);
      const looks = this.#siblings.map(async (sibling) => ({
        database: sibling.database,
        answer: await this.#lookAt(sibling, report, !here.untold.includes(sibling.database)),
      }));
      const seen = await Promise.all(looks);
      if (!report.isHeld()) return null;
      if (here.hurried || waitedMs >= mostMs || seen.every(({ answer }) => answer !== undefined)) {
        const late = here.hurried
          ? 'another report came first'
          : 'its locks could not be had in time';
        const reasons = seen.flatMap(({ database, answer = late }) =>
          answer === null ? [] : [`in database ${database}: ${answer}`],
        );
        return reasons.join('; ') || null;
      }
      const pauseMs = Math.min(LOOK_MS + waitedMs / 20, LOOK_MOST_MS);
      await delay(pauseMs, undefined, { signal: over });
    }
  }

  async #lookAt(
    sibling: Sibling,
    { id, groupid }: HeldReport,
    told: boolean,
  ): Promise<string | null | undefined> {
    const { unledMs } = sibling;
    if (!told) {
      return judge({ told, unledMs, failure: sibling.failureOf(groupid), sight: undefined });
    }
    const origin = this.#options.settings.connection.database ?? '';
    try {
      const sight = await sibling.look({ origin, id, groupid });
      return judge({ told, unledMs: sibling.unledMs, failure: undefined, sight });
    } catch (error) {
      return sibling.describe(error);
    }
  }
}
