import type { Client, QueryConfig } from 'pg';
import { openSession, type Connection } from '../src/postgres/session.js';
import type { Contract, Target } from './reporter.js';

export type Strategy = 'pause-node' | 'demoted-row';

export interface BareScriptOptions {
  readonly connection: Connection;
  readonly strategy: Strategy;
  readonly target: Target;
}

export const BARE_CONTRACT: Contract = {
  insert: {
    name: 'bare-report',
    text: `
      INSERT INTO bare_tasks (event, groupid, nodename, nodeport)
      VALUES ($1, $2, $3, $4)
      RETURNING id`,
  },
  channel: 'bare_task_status',
};

/** A plain table: the columns of a report, no checks, no log, one trigger. */
export const BARE_SCHEMA = `
  CREATE TABLE bare_tasks (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event    text NOT NULL,
    groupid  integer NOT NULL,
    nodename text NOT NULL,
    nodeport integer NOT NULL,
    status   text NOT NULL DEFAULT 'pending'
  );
  CREATE FUNCTION bare_notify() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    PERFORM pg_notify('bare_tasks', '');
    RETURN NULL;
  END
  $$;
  CREATE TRIGGER bare_notify AFTER INSERT ON bare_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION bare_notify();`;

/**
 * What a controller cannot do without, and nothing else: no order, no lock, no bounds, no log, no
 * retry, nothing read. Like the controller it claims and acknowledges on one session and holds on
 * another, with statements that are prepared.
 */
export class BareScript {
  readonly #options: BareScriptOptions;
  #sessions: readonly Client[] = [];
  #last: Promise<void> = Promise.resolve();

  constructor(options: BareScriptOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { connection, strategy, target } = this.#options;
    const [listener, control, hold] = [
      await openBare(connection),
      await openBare(connection),
      await openBare(connection),
    ];
    this.#sessions = [listener, control, hold];
    const pause = PAUSES[strategy](target);
    listener.on('notification', () => {
      this.#last = this.#last.then(() => work(control, hold, pause));
    });
    await listener.query('LISTEN bare_tasks');
  }

  async stop(): Promise<void> {
    await this.#last;
    await Promise.all(this.#sessions.map((session) => session.end()));
  }
}

async function work(control: Client, hold: Client, pause: QueryConfig): Promise<void> {
  const { rows } = await control.query<{ id: string; event: string }>(CLAIM);
  const [task] = rows;
  if (task === undefined) return;
  if (task.event === 'before_demote') {
    await hold.query('BEGIN');
    await hold.query(pause);
    await control.query({ ...ACKNOWLEDGE, values: [task.id, 'holding'] });
  } else {
    await hold.query('ROLLBACK');
    await control.query({ ...ACKNOWLEDGE, values: [task.id, 'done'] });
  }
}

const COOLDOWN_MS = 10_000;

const PAUSES: Readonly<Record<Strategy, (target: Target) => QueryConfig>> = {
  'pause-node': ({ nodeid }) => ({
    name: 'bare-pause',
    text: 'SELECT pg_catalog.citus_pause_node_within_txn($1, true, $2)',
    values: [nodeid, COOLDOWN_MS],
  }),
  'demoted-row': ({ nodeid, host, port }) => ({
    name: 'bare-pause',
    text: 'SELECT pg_catalog.citus_update_node($1, $2, $3, true, $4)',
    values: [nodeid, `${host}-demoted`, port, COOLDOWN_MS],
  }),
};

const CLAIM: QueryConfig = {
  name: 'bare-claim',
  text: `
    UPDATE bare_tasks
    SET status = 'claimed'
    WHERE id = (
      SELECT id
      FROM bare_tasks
      WHERE status = 'pending'
      ORDER BY id
      LIMIT 1
      FOR UPDATE SKIP LOCKED)
    RETURNING id, event`,
};

const ACKNOWLEDGE: QueryConfig = {
  name: 'bare-acknowledge',
  text: `
    WITH task AS (
      UPDATE bare_tasks SET status = $2 WHERE id = $1 RETURNING id, status
    )
    SELECT pg_notify('bare_task_status', json_build_object('id', id, 'status', status)::text)
    FROM task`,
};

/** A session as any client has it, with the search_path of its database. */
async function openBare(connection: Connection): Promise<Client> {
  const session = await openSession(connection, 'bare');
  await session.query('RESET search_path');
  return session;
}
