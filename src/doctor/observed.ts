import type { GucChange, LockNeed, MissingRight, PauseMeans } from '../mpp/abstract.js';
import type { KnownSystem, NodeAnswer } from '../mpp/node-answer.js';
import type { ServerConnections } from '../postgres/pool.js';
import type { Address } from '../address.js';

/** All that the doctor has looked at. A part is null where it was not, or could not be, read. */
export interface Observed {
  readonly target: Target;
  /** MPP_* variables that mean nothing. */
  readonly unknownVariables: readonly string[];
  /** Why there is no session with the coordinator; null where there is one. */
  readonly unreachable: Unreachable | null;
  readonly server: ServerSeen | null;
  readonly schema: SchemaSeen | null;
  /** The coordinator as a controller finds it. */
  readonly strategy: StrategySeen | null;
  readonly rights: readonly MissingRight[] | null;
  readonly connections: ServerConnections | null;
  readonly catalog: CatalogSeen | null;
  readonly triggers: readonly TriggerSeen[] | null;
  readonly work: WorkSeen | null;
  readonly groups: GroupsSeen | null;
  /** The coordinator first, then each row of pg_dist_node; empty where they were not asked. */
  readonly hosts: readonly HostSeen[];
  /** Null where MPP_PATRONI is not set. */
  readonly patroni: readonly PatroniSeen[] | null;
  readonly failures: readonly Failure[] | null;
}

/** Where the doctor was sent, and what it compares with. */
export interface Target {
  /** `host:port`, or several with commas between. */
  readonly node: string;
  readonly database: string;
  readonly user: string;
  /** As whom other nodes are logged in to. */
  readonly nodeUser: string;
  readonly schema: string;
  /** MPP_MAX_SESSIONS and MPP_STRATEGY. */
  readonly maxSessions: number;
  readonly strategy: string;
  /** What lasts for longer is said, in milliseconds. */
  readonly olderMs: number;
}

export interface Unreachable {
  readonly reason: string;
  /** What a person can do about it, where that is known. */
  readonly remedy: string | null;
  /** True where the server answers and the database is not there. */
  readonly isMissingDatabase: boolean;
}

/** The server that was connected to. */
export interface ServerSeen {
  /** As in server_version_num. */
  readonly version: number;
  readonly inRecovery: boolean;
  /** `host:port` of the server that a standby follows, as far as this role may see it. */
  readonly follows: string | null;
  /** Version of the extension, and the one that its packages have; null without it. */
  readonly citus: string | null;
  readonly citusAvailable: string | null;
  readonly isReadOnly: boolean;
  /** What has set default_transaction_read_only, as pg_settings has it. */
  readonly readOnlySource: string | null;
  readonly isSuperuser: boolean;
  /** Whether the role is a member of mpp_controller; null where there is no such role. */
  readonly isMember: boolean | null;
  /** Its group by pg_dist_local_group; null without Citus. */
  readonly localGroup: number | null;
  /** Where the coordinator is, as this server knows it. */
  readonly coordinator: string | null;
}

/** How the schema of the control table is. */
export interface SchemaSeen {
  /** As DatabaseStateError has it, such as SCHEMA_OLDER; null where it is as this version needs it. */
  readonly code: string | null;
  readonly reason: string;
  /** True where every role may create objects in it. */
  readonly isOpen: boolean;
}

/** What a controller can do here, or why it can do nothing. */
export type StrategySeen =
  | { readonly means: PauseMeans; readonly name: string }
  | { readonly code: string; readonly reason: string };

/** A row of pg_dist_node. */
export interface NodeSeen {
  readonly nodeid: number;
  readonly groupid: number;
  readonly address: Address;
  readonly role: 'primary' | 'secondary' | 'unavailable';
  readonly isInCluster: boolean;
  readonly isActive: boolean;
  readonly hasMetadata: boolean;
  readonly isSynced: boolean;
}

export interface CatalogSeen {
  readonly nodes: readonly NodeSeen[];
  /** Groups that have shards. */
  readonly groupsWithShards: readonly number[];
}

/** A trigger of the control table's schema. */
export interface TriggerSeen {
  readonly table: string;
  readonly name: string;
  /** As pg_trigger.tgenabled has it; null where it is missing. */
  readonly enabled: string | null;
}

/** Controllers, tasks and holds. Durations are in milliseconds. */
export interface WorkSeen {
  readonly controllers: readonly {
    readonly state: 'active' | 'standby' | 'gone' | 'none';
    readonly host: string;
    readonly version: string;
  }[];
  readonly blockers: readonly {
    readonly pid: number;
    readonly role: string | null;
    readonly application: string;
    readonly holds: string;
    readonly kind: 'older' | 'schema' | 'row';
  }[];
  readonly pending: readonly {
    readonly id: number;
    readonly groupid: number;
    readonly event: string;
    readonly ageMs: number;
    readonly why: string;
  }[];
  readonly holds: readonly {
    readonly groupid: number;
    readonly remainingMs: number;
    readonly pid: number | null;
  }[];
}

/** What the schema knows of the groups. */
export interface GroupsSeen {
  readonly systems: readonly (KnownSystem & { readonly groupid: number })[];
  /** Members that no row of pg_dist_node has. */
  readonly unregistered: readonly { readonly groupid: number; readonly address: Address }[];
}

/** A server, and what it has said. */
export interface HostSeen {
  readonly node: string;
  readonly groupid: number;
  readonly role: 'primary' | 'secondary';
  readonly nodeid: number | null;
  /** True for the server of DATABASE_URL. */
  readonly isCoordinator: boolean;
  readonly answer: NodeAnswer | Silence;
  readonly local: LocalSeen | null;
  readonly gucs: readonly GucSeen[] | null;
  readonly rights: readonly MissingRight[] | null;
  readonly locks: readonly LockNeed[] | null;
}

export interface Silence {
  readonly silence: string;
  /** True where the server answers and refuses the login. */
  readonly isRefused: boolean;
  readonly isMissingDatabase: boolean;
}

export interface GucSeen extends GucChange {
  readonly needsRestart: boolean;
}

/** What a server says of itself. Durations are in milliseconds. */
export interface LocalSeen {
  /** How far its clock is ahead of this machine's, and by how much that may be wrong. */
  readonly clockMs: number;
  readonly clockErrorMs: number;
  readonly isEncrypted: boolean;
  readonly pendingRestart: readonly string[];
  readonly prepared: readonly { readonly gid: string; readonly ageMs: number }[];
  readonly transactions: readonly {
    readonly pid: number;
    readonly role: string | null;
    readonly application: string;
    readonly state: string;
    readonly ageMs: number;
  }[];
  readonly slots: readonly { readonly name: string; readonly isOfCitus: boolean }[];
  /** Standbys that stream from it. */
  readonly standbys: readonly { readonly application: string; readonly host: string | null }[];
}

/** What a group's Patroni says of its configuration. */
export interface PatroniSeen {
  readonly groupid: number;
  readonly url: string;
  /** Why there is no answer; null where there is one. */
  readonly silence: string | null;
  readonly hasCitusSection: boolean;
}

/** What could not be read. */
export interface Failure {
  /** What it was for, to follow "could not read". */
  readonly part: string;
  readonly node: string;
  readonly reason: string;
  /** A role that may read it; null where that is not what is missing. */
  readonly role: string | null;
}
