import type { Client, ClientBase } from 'pg';
import type { Server } from '../test/support/servers/index.js';
import { Acknowledgements } from './acknowledgements.js';

export type Strategy = 'pause-node' | 'demoted-row';

/** One way from a report to an acknowledged hold. */
export interface Contestant {
  /**
   * Reports, waits until the group is held, then ends the hold.
   *
   * @returns milliseconds from sending the report to receiving the acknowledgement
   */
  round(): Promise<number>;
}

/** The node whose group is held. */
export interface Target {
  readonly nodeid: number;
  readonly groupid: number;
  readonly host: string;
  readonly port: number;
}

/** Through the controller, which runs as a process of its own. */
export async function throughController(
  coordinator: Server,
  { groupid, host, port }: Target,
): Promise<Contestant> {
  const client = await coordinator.connect('bench');
  const acknowledgements = await Acknowledgements.on(
    await coordinator.connect('bench'),
    'mpp_task_status',
  );
  const report = async (event: string, status: string): Promise<number> => {
    const id = await insertedId(client, {
      name: 'bench-report',
      text: REPORT,
      values: [event, groupid, host, port],
    });
    return acknowledgements.received(id, status);
  };
  return {
    async round() {
      const sentAt = performance.now();
      const heldAt = await report('before_demote', 'holding');
      // The same node again: the hold ends, and pg_dist_node stays as it is.
      await report('after_promote', 'done');
      return heldAt - sentAt;
    },
  };
}

/**
 * The same statements by a bare script: nothing but what has to be sent, in sessions that are open
 * and with statements that are prepared. Like the controller it claims and acknowledges on one
 * session and holds on another.
 */
export async function bareScript(
  coordinator: Server,
  target: Target,
  strategy: Strategy,
): Promise<Contestant> {
  const [client, listener, control, hold] = await Promise.all([
    coordinator.connect('bench'),
    coordinator.connect('bench'),
    coordinator.connect('bench'),
    coordinator.connect('bench'),
  ]);
  const acknowledgements = await Acknowledgements.on(
    await coordinator.connect('bench'),
    'bare_task_status',
  );
  const pause = PAUSES[strategy](target);
  let ready = Promise.resolve();
  listener.on('notification', () => {
    ready = holdNext(control, hold, pause);
    ready.catch(() => undefined);
  });
  await listener.query('LISTEN bare_tasks');
  return {
    async round() {
      const sentAt = performance.now();
      const id = await insertedId(client, {
        name: 'bare-report',
        text: BARE_REPORT,
        values: ['before_demote', target.groupid, target.host, target.port],
      });
      const heldAt = await acknowledgements.received(id, 'holding');
      await ready;
      await hold.query('ROLLBACK');
      return heldAt - sentAt;
    },
  };
}

interface Statement {
  readonly name: string;
  readonly text: string;
  readonly values: (string | number)[];
}

async function holdNext(control: ClientBase, hold: ClientBase, pause: Statement): Promise<void> {
  const { rows } = await control.query<{ id: string }>({ name: 'bare-claim', text: BARE_CLAIM });
  const [task] = rows;
  if (task === undefined) return;
  await hold.query('BEGIN');
  await hold.query(pause);
  await control.query({
    name: 'bare-acknowledge',
    text: BARE_ACKNOWLEDGE,
    values: [task.id],
  });
}

async function insertedId(client: Client, statement: Statement): Promise<string> {
  const { rows } = await client.query<{ id: string }>(statement);
  const [row] = rows;
  if (row === undefined) throw new Error(`${statement.name} inserted nothing`);
  return row.id;
}

const COOLDOWN_MS = 10_000;

const PAUSES: Readonly<Record<Strategy, (target: Target) => Statement>> = {
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

const REPORT = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
  VALUES ($1, $2, $3, $4)
  RETURNING id`;

/** A plain table: the columns that a report has, no checks, one trigger. */
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

const BARE_REPORT = `
  INSERT INTO bare_tasks (event, groupid, nodename, nodeport)
  VALUES ($1, $2, $3, $4)
  RETURNING id`;

const BARE_CLAIM = `
  UPDATE bare_tasks
  SET status = 'claimed'
  WHERE id = (
    SELECT id
    FROM bare_tasks
    WHERE status = 'pending'
    ORDER BY id
    LIMIT 1
    FOR UPDATE SKIP LOCKED)
  RETURNING id`;

const BARE_ACKNOWLEDGE = `
  WITH held AS (
    UPDATE bare_tasks SET status = 'holding' WHERE id = $1 RETURNING id, status
  )
  SELECT pg_notify('bare_task_status', json_build_object('id', id, 'status', status)::text)
  FROM held`;
