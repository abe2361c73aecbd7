import type { Settings } from '../config/settings.js';
import type { Connection } from '../postgres/session.js';

/** The settings that an MPP database has a say in. */
export type MPPSettings = Pick<Settings, 'schema' | 'strategy'> &
  Partial<Pick<Settings, 'connection'>>;

export interface BootstrapOptions {
  /** The database to make; the role that connects must be a superuser. */
  readonly connection: Connection;
  readonly schema: string;
  /** How long migrations wait for their lock, in milliseconds. */
  readonly migrateTimeoutMs: number;
  /** What nodes authenticate with at each other, as the MPP database takes it. A secret. */
  readonly authinfo: string | undefined;
  /** Where workers reach the coordinator. Without a port, the server's own. */
  readonly coordinator: { readonly host: string; readonly port: number | undefined };
  /** True for a worker: only the database, the extension and the credentials. */
  readonly worker: boolean;
}

/** What became of one step of bootstrap. */
export interface StepReport {
  readonly step: string;
  readonly outcome: 'done' | 'already there';
  readonly detail: string;
}

/** What a server is to have, beyond what the MPP database always needs. */
export interface WantedGucs {
  /** The name by which a node reaches itself. */
  readonly localHostname: string;
  /** True when a person gave that name, so that it replaces another one. */
  readonly isHostnameNamed: boolean;
  /** How many databases of the server have Citus. */
  readonly databases: number;
}

/** The same, with the databases by name as far as the settings name them. */
export interface WantedByName extends Omit<WantedGucs, 'databases'> {
  readonly databases: readonly string[];
}

/** One parameter that differs from what the MPP database needs. */
export interface GucChange {
  readonly name: string;
  /** null where it is not set. */
  readonly current: string | null;
  /** More than one only for a parameter that is a list. */
  readonly wanted: readonly string[];
}

/** A parameter as the server has it. */
export interface GucState {
  readonly name: string;
  readonly running: string | null;
  /** As the files have it; null when they don't, or when this role may not look. */
  readonly configured: string | null;
  readonly pendingRestart: boolean;
  /** Given when the server was started (`-c`): files, and so ALTER SYSTEM, have no effect. */
  readonly onCommandLine: boolean;
  /** False where it can be reloaded. True for a parameter that the server does not know before the library is loaded. */
  readonly needsRestart: boolean;
}

/** By name. */
export type GucStates = ReadonlyMap<string, GucState>;

/** What a server has and what would have to change. */
export interface GucPlan {
  /** Every parameter that was looked at. */
  readonly states: GucStates;
  /** Empty when the server is as it should be. */
  readonly changes: readonly GucChange[];
}

/** A replication slot, as pg_replication_slots has it. */
export interface ReplicationSlot {
  readonly name: string;
  readonly type: 'logical' | 'physical';
  /** null for a physical slot, as is `plugin`. */
  readonly database: string | null;
  readonly plugin: string | null;
}
