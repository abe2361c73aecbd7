import type pg from 'pg';
import { openSession, type Connection } from '../../postgres/session.js';
import { sqlState } from '../../postgres/sqlstate.js';
import { Loop } from '../../loop.js';
import { classifyFailure, type Failure } from './failure.js';

/** What a node said of itself. */
export interface Answer {
  readonly standby: boolean;
  /** A standby that receives WAL now; false also where this role may not see it. */
  readonly streaming: boolean;
  readonly timeline: number | null;
  /** null where this role may not ask for it. */
  readonly systemIdentifier: string | null;
  /** When its postmaster started: with the system identifier it names one server. */
  readonly startedAt: string;
}

/** One look at one node. */
export interface Observation {
  /** When the look began, as performance.now() has it. */
  readonly seenAt: number;
  readonly answer?: Answer;
  readonly failure?: Failure;
}

interface NodeProbeOptions {
  readonly connection: Connection;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onObservation: (observation: Observation) => void;
}

/**
 * Asks one node time and again on a connection that is kept. When the server closes it the node is
 * asked at once, so a crash is seen in the time of a refused connection, not at the next round.
 */
export class NodeProbe {
  readonly #options: NodeProbeOptions;
  readonly #loop: Loop;
  #client: pg.Client | undefined;
  #server: Pick<Answer, 'systemIdentifier' | 'startedAt'> | undefined;
  #dropped = false;

  constructor(options: NodeProbeOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: (signal) => this.#look(signal),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    const stopped = this.#loop.stop();
    // What is being asked ends with its connection.
    this.#discard();
    await stopped;
    this.#discard();
  }

  async #look(signal: AbortSignal): Promise<void> {
    const { onObservation } = this.#options;
    const seenAt = performance.now();
    let dropped = this.#dropped;
    this.#dropped = false;
    for (;;) {
      const kept = this.#client !== undefined;
      try {
        const answer = await this.#ask();
        if (!signal.aborted) onObservation({ seenAt, answer });
        return;
      } catch (error) {
        this.#discard();
        if (signal.aborted) return;
        const failure = classifyFailure(error);
        if (kept && failure.kind !== 'silent') {
          // This one session may have been terminated; a new one tells whether the server is there.
          dropped = true;
          continue;
        }
        onObservation({ seenAt, failure: dropped ? { ...failure, dropped: true } : failure });
        return;
      }
    }
  }

  async #ask(): Promise<Answer> {
    const client = (this.#client ??= await this.#connect());
    const { rows } = await client.query<Omit<Answer, 'systemIdentifier' | 'startedAt'>>(ASK);
    const [row] = rows;
    if (row === undefined || this.#server === undefined) {
      throw new Error('the statements ASK and STARTED_AT return one row');
    }
    return { ...row, ...this.#server };
  }

  async #connect(): Promise<pg.Client> {
    const { connection, timeoutMs } = this.#options;
    const client = await openSession(
      { ...connection, connectionTimeoutMillis: timeoutMs, query_timeout: timeoutMs },
      'probe',
    );
    const lost = (): void => {
      if (this.#client !== client) return;
      this.#client = undefined;
      this.#discard(client);
      this.#dropped = true;
      this.#loop.wake();
    };
    client.on('error', lost);
    client.on('end', lost);
    try {
      // They cannot change while the server runs, so once a connection is enough.
      this.#server = {
        startedAt: await readStart(client),
        systemIdentifier: await readSystemIdentifier(client),
      };
      return client;
    } catch (error) {
      this.#discard(client);
      throw error;
    }
  }

  /** The socket is closed at once: a goodbye would wait for a host that has vanished. */
  #discard(client = this.#client): void {
    if (client === this.#client) this.#client = undefined;
    client?.connection.stream.destroy();
  }
}

async function readStart(client: pg.Client): Promise<string> {
  const { rows } = await client.query<{ started: string }>(STARTED_AT);
  return rows[0]?.started ?? '';
}

const STARTED_AT = `
  SELECT pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text AS started`;

async function readSystemIdentifier(client: pg.Client): Promise<string | null> {
  try {
    const { rows } = await client.query<{ identifier: string }>(SYSTEM_IDENTIFIER);
    return rows[0]?.identifier ?? null;
  } catch (error) {
    if (sqlState(error) === INSUFFICIENT_PRIVILEGE) return null;
    throw error;
  }
}

const INSUFFICIENT_PRIVILEGE = '42501';

const SYSTEM_IDENTIFIER =
  'SELECT system_identifier::text AS identifier FROM pg_catalog.pg_control_system()';

/**
 * The timeline of a primary is in the name of the WAL file it writes; that of a standby is the one it
 * receives, or the one it replayed last. CASE keeps the first from being asked for on a standby, where
 * it is an error.
 */
const ASK = `
  SELECT r.standby,
         r.standby AND coalesce(w.status = 'streaming', false) AS streaming,
         CASE
           WHEN NOT r.standby
             THEN ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::integer
           ELSE w.received_tli
         END AS timeline
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) AS r
  LEFT JOIN pg_catalog.pg_stat_wal_receiver AS w ON true`;
