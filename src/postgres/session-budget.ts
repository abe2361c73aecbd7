import type { Queryable } from './queryable.js';

/** How many sessions one controller may have on the coordinator at once, by what they are for. */
export interface SessionBudget {
  /** In all. */
  readonly total: number;
  /** For the table of tasks. */
  readonly queue: number;
  /** One for each group that is held or worked on. */
  readonly groups: number;
  /** What several holds lock together. */
  readonly pause: number;
  /** To look at lock waits. */
  readonly watch: number;
  /** Kept open while nothing is held, so that a hold need not connect first. */
  readonly kept: { readonly groups: number; readonly pause: number; readonly watch: number };
}

/** What the server allows. */
export interface ServerConnections {
  /** max_connections. */
  readonly max: number;
  /** superuser_reserved_connections and reserved_connections. */
  readonly reserved: number;
}

/** Control, listen, the search for another coordinator, and the probe of the coordinator itself. */
const OTHERS = 4;
/** Four that a hold shares while it lasts, four while it is opened, one to read what there is to lock. */
const PAUSE = 9;
const FEW = { queue: 2, watch: 1 };
const MANY = { queue: 4, watch: 4 };
/** With less than that no group can be held. */
export const LEAST_SESSIONS = OTHERS + PAUSE + FEW.queue + FEW.watch + 1;

/**
 * Divides what one controller may open: at most `most`, and at most half of what the server has for
 * ordinary sessions. Of these, at most a quarter of what the server has is kept open while nothing is held.
 * Pure.
 *
 * The sessions of the other databases of MPP_DATABASES come on top.
 */
export function divideSessions(most: number, server: ServerConnections): SessionBudget {
  const free = Math.max(server.max - server.reserved, 0);
  const total = Math.max(Math.min(most, Math.floor(free / 2)), LEAST_SESSIONS);
  const rest = total - OTHERS - PAUSE;
  const { queue, watch } = rest < 2 * (MANY.queue + MANY.watch) ? FEW : MANY;
  const spare = Math.max(0, Math.floor(free / 4) - OTHERS - queue);
  const groups = Math.min(1, spare);
  const keptWatch = Math.min(2, watch, spare - groups);
  const keptPause = Math.min(5, spare - groups - keptWatch);
  return {
    total,
    queue,
    groups: rest - queue - watch,
    pause: PAUSE,
    watch,
    kept: { groups, pause: keptPause, watch: keptWatch },
  };
}

export async function readServerConnections(db: Queryable): Promise<ServerConnections> {
  const { rows } = await db.query<ServerConnections>(CONNECTIONS);
  const [row] = rows;
  if (row === undefined) throw new Error('the statement CONNECTIONS returns one row');
  return row;
}

/** reserved_connections is there from PostgreSQL 16 on. */
const CONNECTIONS = `
  SELECT current_setting('max_connections')::integer AS max,
         current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved`;
