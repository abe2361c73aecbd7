import type { Client } from 'pg';
import { errorText } from '../src/postgres/session.js';
import type { ReportInput } from '../test/kit/harness.js';
import type { Server } from '../test/kit/servers/index.js';
import { Acknowledgements } from './acknowledgements.js';
import { COOLDOWN } from './bench.js';
import { CONTROLLER_CONTRACT } from './reporter.js';

/** How long a hold may take: until its cooldown is over, and some more. */
const ANSWER_MOST_MS = 40_000;

/** A report and its acknowledgement; times by performance.now(). */
export interface Answer {
  readonly id: string;
  /** When the INSERT was sent. */
  readonly sentAt: number;
  /** When the notification arrived. */
  readonly answeredAt: number;
}

/** Reports events as an HA manager does, and waits for what the controller says to them. */
export class Reports {
  readonly #client: Client;
  readonly #listener: Client;
  readonly #acknowledgements: Acknowledgements;

  private constructor(client: Client, listener: Client, acknowledgements: Acknowledgements) {
    this.#client = client;
    this.#listener = listener;
    this.#acknowledgements = acknowledgements;
  }

  static async start(coordinator: Server): Promise<Reports> {
    const client = await coordinator.connect('bench');
    const listener = await coordinator.connect('bench');
    const { channel } = CONTROLLER_CONTRACT;
    return new Reports(client, listener, await Acknowledgements.on(listener, channel));
  }

  /**
   * Reports, and waits until the task has this status.
   *
   * @throws Error with the task's reason when it ends otherwise
   */
  async send(input: ReportInput, status: 'holding' | 'done' | 'failed'): Promise<Answer> {
    const { event, groupid, node, pause = null, cooldown = COOLDOWN, timeout = null } = input;
    const sentAt = performance.now();
    const { rows } = await this.#client.query<{ id: string }>({
      ...INSERT,
      values: [event, groupid, node.host, node.port, pause, cooldown, timeout],
    });
    const id = rows[0]?.id ?? '';
    try {
      return {
        id,
        sentAt,
        answeredAt: await this.#acknowledgements.received(id, status, ANSWER_MOST_MS),
      };
    } catch (error) {
      const reason = (await this.reason(id)) ?? 'no reason given';
      throw new Error(`${event} of group ${groupid}: ${errorText(error)}; ${reason}`, {
        cause: error,
      });
    }
  }

  /** What a task says of itself, or null. */
  async reason(id: string): Promise<string | null> {
    const { rows } = await this.#client.query<{ reason: string | null }>(
      'SELECT reason FROM mpp_tasks WHERE id = $1',
      [id],
    );
    return rows[0]?.reason ?? null;
  }

  /** When a task ended, in milliseconds since 1970; see `Switcher`. */
  async committedAt(id: string): Promise<number> {
    return commitTime(this.#client, TASK_COMMIT_TIME, id);
  }

  async stop(): Promise<void> {
    await Promise.all([this.#client.end(), this.#listener.end()]);
  }
}

const INSERT = {
  name: 'bench-report',
  text: `
    INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, pause, cooldown, timeout)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    RETURNING id`,
};

const TASK_COMMIT_TIME = `
  SELECT (extract(epoch FROM pg_xact_commit_timestamp(t.xmin)) * 1000)::float8 AS at
  FROM mpp_tasks AS t
  WHERE t.id = $1`;

/** Runs a query for the time of a commit. @throws Error when the server does not know it */
export async function commitTime(session: Client, text: string, value: string): Promise<number> {
  const { rows } = await session.query<{ at: number | null }>(text, [value]);
  const at = rows[0]?.at ?? null;
  if (at === null) throw new Error('the server does not know when that was committed');
  return at;
}
