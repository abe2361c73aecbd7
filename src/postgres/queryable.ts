import type { ClientBase, Pool } from 'pg';

/** Anything that runs one statement: a session, or a pool that picks one. */
export type Queryable = Pool | ClientBase;
