import type { Connection } from '../../../src/postgres/session.js';

/** What a client program was told is committed. */
export interface Acknowledged {
  /** Rows inserted into items. */
  readonly inserted: number;
  /** By how much the sum of `v` in items grew. */
  readonly items: number;
  /** By how much the sum of `v` in notes grew. */
  readonly notes: number;
}

/** What a client program says at its end. */
export interface ClientReport extends Acknowledged {
  /** Each failed statement or transaction with its error text, and each end that was not asked for. */
  readonly failures: readonly string[];
}

/** A client program that runs until it is stopped. */
export interface RunningClient {
  /** Lets it finish what is in flight, waits for its end and reads its report. */
  stop(): Promise<ClientReport>;
}

/** The ids of items and notes that one program uses, and no other. */
export interface IdRange {
  /** The ids are above this. */
  readonly base: number;
}

/** Ids of one program: more than any run inserts. */
export const IDS_OF_PROGRAM = 1_000_000;

/** Sessions of one program. The first only reads: one that also writes would soon wait for its write. */
export const SESSIONS = 4;

/** Rows of items that each session updates: `base + 1` up to `base + SESSIONS * ITEMS_OF_SESSION`. */
export const ITEMS_OF_SESSION = 12;

/** Rows of notes that all sessions of a program update: `base + 1` up to `base + NOTES_OF_PROGRAM`. */
export const NOTES_OF_PROGRAM = 4;

/** Inserted ids are above `base + FIRST_INSERTED`, `INSERTED_OF_SESSION` for each session. */
export const FIRST_INSERTED = 1_000;
export const INSERTED_OF_SESSION = 100_000;

/** A session pauses between two transactions for up to this time, 20 ms on average. */
export const MAX_THINK_MS = 40;

/** The name of the programs' sessions, in pg_stat_activity. */
export const APPLICATION_NAME = 'real client';

/** Starts a client program of `SESSIONS` sessions whose statements enter at `entry`. */
export type StartClient = (entry: Connection, range: IdRange) => Promise<RunningClient>;
