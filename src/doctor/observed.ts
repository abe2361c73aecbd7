/** All that the doctor has looked at. A part is null where it was not, or could not be, read. */
export interface Observed {
  readonly target: Target;
  /** Why there is no session with the coordinator; null where there is one. */
  readonly unreachable: Unreachable | null;
  readonly server: ServerSeen | null;
  readonly schema: SchemaSeen | null;
}

/** Where the doctor was sent. */
export interface Target {
  /** `host:port`, or several with commas between. */
  readonly node: string;
  readonly database: string;
  readonly user: string;
  readonly schema: string;
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
  /** Version of the extension; null without it. */
  readonly citus: string | null;
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
}
