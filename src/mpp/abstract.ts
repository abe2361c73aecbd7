import type { ClientBase } from 'pg';
import type { Settings } from '../config/settings.js';
import type { Connection } from '../postgres/session.js';
import type { Logger } from '../logger.js';
import type { Queryable } from '../postgres/queries.js';
import type { ServerIdentity } from '../postgres/identity.js';
import type { NodeCredentials } from '../postgres/connection/database-url.js';
import type { SessionBudget } from '../postgres/pool.js';
import type { Transaction } from '../postgres/transaction.js';
import type { PauseShortfall } from '../tasks/observer.js';
import type { BlockerNote, Pause, Task } from '../tasks/task.js';
import type { Address } from '../address.js';
import type { NodeAnswer } from './node-answer.js';

/** A row of the catalog that says where a node is; for Citus, a row of pg_dist_node. */
export interface Node {
  readonly nodeid: number;
  readonly groupid: number;
  readonly address: Address;
  /** `unavailable`: neither, such as a clone that Citus is to promote. Left alone. */
  readonly role: 'primary' | 'secondary' | 'unavailable';
  /** Of a clone: the nodeid of the primary that it follows. */
  readonly cloneOf?: number;
  /** False for a row of another node cluster, which is never touched. */
  readonly isInCluster: boolean;
}

/** What a group's hold has changed so far, unseen by others until it commits. */
export interface HeldNode {
  readonly nodeid: number;
  /** Where the primary was when the hold opened. */
  readonly original: Address;
  /** Where before_promote said that it will be. */
  readonly target: Address | null;
}

/** One call that changes the catalog. */
export type Step =
  | { readonly op: 'update'; readonly nodeid: number; readonly to: Address }
  | {
      readonly op: 'add';
      readonly groupid: number;
      readonly role: 'primary' | 'secondary';
      readonly node: Address;
    }
  | { readonly op: 'remove'; readonly node: Address }
  | { readonly op: 'removeClone'; readonly node: Address }
  | { readonly op: 'coordinator'; readonly node: Address };

/** What a task asks for, given the group as it is. */
export type Transition =
  /** It is about something that is no longer so; nothing changes. */
  | { readonly kind: 'discard'; readonly reason: string }
  /** No retry can make it possible. */
  | { readonly kind: 'fail'; readonly reason: string }
  /** The catalog says so already. */
  | { readonly kind: 'nothing'; readonly nodeid: number | null; readonly reason: string }
  /** The traffic of `node` waits, from now on or already. `target`: where it will be. */
  | { readonly kind: 'hold'; readonly node: Node; readonly target: Address | null }
  /** `steps` and the commit; `followUp`: secondaries are left for a task after it. */
  | {
      readonly kind: 'change';
      readonly nodeid: number | null;
      readonly steps: readonly Step[];
      readonly followUp: boolean;
    };

/** What the server has for making traffic wait, and what this role may do. */
export interface PauseMeans {
  /** Names of strategies that can be used, the best first. */
  readonly strategies: readonly string[];
  /** Whether this role may end sessions that block a hold. */
  readonly maySignal: boolean;
}

/** A pause that may have to come as soon as it can. */
export interface LikelyPause {
  readonly groupid: number;
  readonly pause: Exclude<Pause, 'none'>;
  /** How long the hold may last, in milliseconds from now. */
  readonly remainingMs: number;
}

/** What has been opened and read for a pause before it was asked for. */
export interface Prefetch {
  /** Closes what no hold has come to use. */
  end(): void;
}

export interface PauseRequest {
  /** The transaction of the group: what the pause takes on the coordinator lasts until it ends. */
  readonly session: Transaction;
  /** The primary whose traffic is to wait. */
  readonly node: Node;
  /** The group's rows. */
  readonly nodes: readonly Node[];
  readonly pause: Exclude<Pause, 'none'>;
  /** False when the primary is gone already: then what is not held yet fails. */
  readonly planned: boolean;
  readonly means: PauseMeans;
  readonly cooldownMs: number;
  /** How long the hold may last, in milliseconds from now. */
  readonly remainingMs: number;
  /** What `prefetch` gave for it, if it was called. */
  readonly prefetch?: Prefetch | undefined;
  /** Called with a sentence that names the sessions which have blocked it for a second, and with these; on each change. */
  readonly onBlocked: (sentence: string, blockers: readonly BlockerNote[]) => void;
  /** Called for each session that was terminated because it blocked the pause. */
  readonly onTerminated: () => void;
  /** Called for each maintenance command that was cancelled because it blocked the pause. */
  readonly onCancelled: () => void;
  /** Called with a sentence when less is paused than before, once the pause is there. */
  readonly onReason: (sentence: string) => void;
  /** Interrupts it. */
  readonly signal: AbortSignal;
}

/** The clients that wait for a hold at one moment, on all its nodes. */
export interface WaitingClients {
  readonly sessions: number;
  /** For how long the statement has been running that has waited longest; null where this role may not see it. */
  readonly longestMs: number | null;
}

/** The traffic of one group waits, until the transaction of the request has ended. */
export interface Pausing {
  /** A sentence when less waits than was asked for at this moment, else null. */
  readonly reason: string | null;
  /** In what it is less than was asked for, at this moment. */
  readonly shortfalls: readonly PauseShortfall[];
  /** Resolves once locks that were lost meanwhile are there again, or `reason` says that they are not. */
  whole(): Promise<void>;
  /** Processes of the coordinator whose statements wait for it on other nodes, and so for its end. */
  waiters(): Promise<ReadonlySet<number>>;
  /** The clients that wait now. A node that does not answer counts none. */
  waitingClients(): Promise<WaitingClients>;
  readonly strategy: string;
  /** True when no other session can change the catalog's rows until it ends. */
  readonly locksNodes: boolean;
  /** Tells it where the primary will be, if the strategy writes that down early. */
  retarget(
    held: HeldNode,
    nodes: readonly Node[],
    target: Address,
    cooldownMs: number,
  ): Promise<void>;
  /** The transaction of the group is about to be committed. */
  expectCommit(): void;
  /** The hold may last so many milliseconds from now. */
  extend(remainingMs: number): void;
}

/** Makes traffic wait. It keeps sessions of its own, as long as the controller leads. */
export interface TrafficControl {
  /**
   * @throws DatabaseStateError when it cannot be done on this server as it is; else the error of a
   *   statement, or the reason of the signal. Nothing waits then that is not of the request's session.
   */
  pause(request: PauseRequest): Promise<Pausing>;
  /** Begins to open and read what a pause will need, while it is being decided whether it comes to one. */
  prefetch(likely: LikelyPause): Prefetch;
  /** Opens the sessions that a pause will need, where they are missing. Never throws. */
  prewarm(db: Queryable): Promise<void>;
  /** Lets all traffic go on that waits for sessions of its own, and closes them. */
  stop(): Promise<void>;
}

export interface TrafficOptions {
  /** How the coordinator is reached. */
  readonly connection: Connection;
  /** The server that it must be. */
  readonly identity: ServerIdentity;
  /** Called when it is another one. */
  readonly onOtherServer: () => void;
  /** How other nodes are logged in to. */
  readonly node: NodeCredentials;
  readonly schema: string;
  /** How many sessions it may have; as many as it likes by default. */
  readonly sessions?: Pick<SessionBudget, 'groups' | 'pause' | 'watch' | 'kept'>;
  /** Aborted when the coordinator does not answer: sessions are closed without waiting for it. */
  readonly severed?: AbortSignal;
  readonly logger: Logger;
}

/** Asks a node what it is, on one session. */
export type AskNode = () => Promise<NodeAnswer>;

/** What a role may not do. */
export interface MissingRight {
  /** `wrappers`: functions that bootstrap installs. */
  readonly kind: 'tables' | 'functions' | 'signal' | 'deadlock_timeout' | 'wrappers';
  /** With what gives it the right. */
  readonly sentence: string;
  /** The statements that give it the right; none where only bootstrap, or a change of owners, does. */
  readonly grants: readonly string[];
}

/** The locks that a hold takes on one node. */
export interface LockNeed {
  readonly groupid: number;
  readonly needed: number;
  /** How many the node has room for. */
  readonly room: number;
  /** What max_locks_per_transaction must be there; null where there is room. */
  readonly setting: number | null;
}

/** What keeps a change of the catalog waiting. */
export interface ChangeBlocker {
  /** Names its transaction. */
  readonly key: string;
  /** Its server process; 0 for a prepared transaction. */
  readonly pid: number;
  /**
   * - `session`: it may be terminated once it has blocked the change for the cooldown.
   * - `block`: it keeps all changes of the catalog away on purpose, as a backup does; waited for.
   * - `prepared`: a prepared transaction, which has no session.
   * - `own`: a session of a controller.
   */
  readonly kind: 'session' | 'block' | 'prepared' | 'own';
  /** Who it is and since when, for people. */
  readonly described: string;
  readonly usename: string | null;
  readonly application: string | null;
  /** As in pg_stat_activity; null where this role may not see it. */
  readonly state: string | null;
  /** When its transaction began; null where this role may not see it. */
  readonly since: Date | null;
  /** Whether this role may terminate it. */
  readonly mayEnd: boolean;
  /** True when it has just been terminated. */
  readonly ended: boolean;
}

/** A kind of MPP database. */
export interface AbstractMPP {
  /** Name in the log and in errors. */
  readonly name: string;

  /**
   * SELECT of all rows of the catalog, for statements that compare it with tables of the schema: nodeid, groupid,
   * nodename, nodeport, noderole (see `Node.role`, as text), in_cluster (see `Node.isInCluster`), cloneof
   * (see `Node.cloneOf`).
   */
  readonly nodesQuery: string;

  /**
   * Checks what the settings say against what this database allows, without asking a server.
   *
   * @throws ConfigError naming the setting, its value and what to give.
   */
  validateConfig(settings: MPPSettings): void;

  /**
   * Makes a server ready. Each step looks first and changes only what is missing, so that it can be
   * run again at any time, also by two at once.
   *
   * @param report called after each step
   * @throws UnreachableError when there is no session, DatabaseStateError when a step fails; the
   *   steps before it stay done.
   */
  bootstrap(options: BootstrapOptions, report: (step: StepReport) => void): Promise<void>;

  /**
   * Compares the server's parameters with what the database needs; changes nothing.
   *
   * @throws DatabaseStateError when this role may not see all that is needed to decide.
   */
  planGucs(session: ClientBase, wanted: WantedByName): Promise<GucPlan>;

  /**
   * Writes changes to the server's configuration and reloads it; `GucState.needsRestart` tells which
   * wait for a restart. All of them or none.
   */
  applyGucs(session: ClientBase, changes: readonly GucChange[]): Promise<void>;

  /**
   * Refuses a server that is a worker. A database without the extension passes.
   *
   * @throws DatabaseStateError `NOT_COORDINATOR`, naming the group and where the coordinator is.
   */
  refuseWorker(session: ClientBase): Promise<void>;

  /** @throws DatabaseStateError `NO_CITUS` in a database without the catalog. */
  requireCatalog(session: ClientBase): Promise<void>;

  /**
   * Whether a replication slot is the database's own, so that an HA manager must leave it alone.
   *
   * @param db a session that replaces `@mpp.` by the schema.
   */
  ignoreReplicationSlot(db: Queryable, slot: ReplicationSlot): Promise<boolean>;

  /**
   * Looks at the server: is the database there, in which version, and what may this role do.
   *
   * @throws DatabaseStateError when the server cannot be controlled, with what to do about it.
   */
  inspect(session: ClientBase): Promise<AbstractMPPHandler>;

  /** Prepares a session with any node for asking it what it is. */
  prepareAsking(session: ClientBase): Promise<AskNode>;

  createTraffic(options: TrafficOptions): TrafficControl;

  /** What a hold cannot do on a node other than the coordinator with the rights of this session's role. */
  missingNodeRights(session: ClientBase): Promise<readonly MissingRight[]>;

  /** What a hold of each of these groups locks on the node of this session. */
  readLockNeeds(session: ClientBase, groupids: readonly number[]): Promise<readonly LockNeed[]>;
}

/** The operations on one MPP database. All take a session with an open transaction. */
export interface AbstractMPPHandler {
  /** How traffic is made to wait, when nothing speaks against it. */
  readonly strategy: string;
  readonly means: PauseMeans;
  /** Version of the database's extension, for people. */
  readonly version: string;

  /** What cannot be done with the rights of this session's role. */
  missingRights(session: ClientBase): Promise<readonly MissingRight[]>;

  /**
   * Which parameters of the server make a switchover slower than it needs to be, in sentences, each with the
   * command that changes it.
   */
  adviseSettings(session: ClientBase): Promise<readonly string[]>;

  /** Whether a further group may be held beside the ones held now. */
  canHoldAnother(session: ClientBase): Promise<boolean>;

  /** The rows of the task's group, and any row at an address that the task names. */
  readNodes(db: Queryable, task: Task): Promise<Node[]>;

  /** Decides; pure. */
  plan(task: Task, nodes: readonly Node[], held: HeldNode | null): Transition;

  /**
   * Runs one step.
   *
   * @param force the database ends the sessions that block it, once they have for `cooldownMs`.
   */
  apply(session: ClientBase, step: Step, cooldownMs: number, force: boolean): Promise<void>;

  /**
   * What keeps the session of process `pid` from changing the catalog. Those of the transactions `overdue`
   * that do are terminated, if they are sessions that may be.
   *
   * @param db another session than that of `pid`
   */
  changeBlockers(
    db: Queryable,
    pid: number,
    overdue: readonly string[],
  ): Promise<readonly ChangeBlocker[]>;

  /** Cancels the statement that the session of process `pid` runs. */
  cancelStatement(db: Queryable, pid: number): Promise<void>;
}

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
