import type { Client, QueryConfig } from 'pg';
import type { Server } from '../test/kit/servers/index.js';
import { Acknowledgements } from './acknowledgements.js';

/** The node whose group is held. */
export interface Target {
  readonly nodeid: number;
  readonly groupid: number;
  readonly host: string;
  readonly port: number;
}

/** Where reports go, and where they are acknowledged. */
export interface Contract {
  /** Inserts (event, groupid, nodename, nodeport) and returns the id. */
  readonly insert: QueryConfig;
  readonly channel: string;
}

export const CONTROLLER_CONTRACT: Contract = {
  insert: {
    name: 'report',
    text: `
      INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
      VALUES ($1, $2, $3, $4)
      RETURNING id`,
  },
  channel: 'mpp_task_status',
};

/** The client: the same for each way to open the hold. */
export class Reporter {
  readonly #client: Client;
  readonly #listener: Client;
  readonly #acknowledgements: Acknowledgements;
  readonly #insert: QueryConfig;
  readonly #target: Target;

  private constructor(
    [client, listener]: readonly [Client, Client],
    acknowledgements: Acknowledgements,
    insert: QueryConfig,
    target: Target,
  ) {
    this.#client = client;
    this.#listener = listener;
    this.#acknowledgements = acknowledgements;
    this.#insert = insert;
    this.#target = target;
  }

  static async start(
    coordinator: Server,
    { insert, channel }: Contract,
    target: Target,
  ): Promise<Reporter> {
    const client = await coordinator.connect('bench');
    const listener = await coordinator.connect('bench');
    const acknowledgements = await Acknowledgements.on(listener, channel);
    return new Reporter([client, listener], acknowledgements, insert, target);
  }

  /**
   * Reports, waits until the group is held, then ends the hold.
   *
   * @returns milliseconds from sending the report to receiving the acknowledgement
   */
  async round(): Promise<number> {
    const sentAt = performance.now();
    const heldAt = await this.#report('before_demote', 'holding');
    // The same node again: the hold ends, and pg_dist_node stays as it is.
    await this.#report('after_promote', 'done');
    return heldAt - sentAt;
  }

  async stop(): Promise<void> {
    await Promise.all([this.#client.end(), this.#listener.end()]);
  }

  async #report(event: string, status: string): Promise<number> {
    const { groupid, host, port } = this.#target;
    const values = [event, groupid, host, port];
    const { rows } = await this.#client.query<{ id: string }>({ ...this.#insert, values });
    const [row] = rows;
    if (row === undefined) throw new Error(`the report of ${event} inserted nothing`);
    return this.#acknowledgements.received(row.id, status);
  }
}
