import type { Client } from 'pg';
import { waitFor, type Server } from '../kit/servers/index.js';
import type { ReportStep, Where } from './schedule.js';
import { text, type Address } from './stage.js';

/** How long a step waits for an acknowledgement before the next one comes; it need not come. */
const WAIT_MS = 1_200;
const AGAIN_MS = 25;

/** What a group's reports name, given where it was reported to be last. */
export interface Addresses {
  readonly two: readonly [Address, Address];
  readonly stranger: Address;
  readonly nowhere: Address;
}

/** What was done for a group, for the model. */
export interface Told {
  /** Tasks that were to be cancelled. */
  readonly cancelled: Set<string>;
  /** Whether the group was to be released. */
  released: boolean;
}

/**
 * The HA side of one group: makes its reports one after the other, each again until it is in the table. All
 * steps return at once; `drained` waits until all are done.
 */
export class Reporter {
  readonly groupid: number;
  readonly told: Told = { cancelled: new Set(), released: false };
  readonly #server: Server;
  readonly #addresses: Addresses;
  #present: Address;
  #session: Client | undefined;
  #work: Promise<void> = Promise.resolve();
  #pending = 0;
  #marks = 0;
  #last: string | undefined;
  #over = false;

  constructor(server: Server, groupid: number, present: Address, addresses: Addresses) {
    this.#server = server;
    this.groupid = groupid;
    this.#present = present;
    this.#addresses = addresses;
  }

  get isIdle(): boolean {
    return this.#pending === 0;
  }

  report(step: ReportStep): void {
    // The number makes the report known again when the answer to its INSERT is lost.
    this.#marks += 1;
    const timeout = `${step.timeoutMs}.${String(this.#marks).padStart(3, '0')} ms`;
    this.#do(async (session) => {
      const { rows } = await session.query<{ id: string }>(
        'SELECT id FROM mpp_tasks WHERE groupid = $1 AND timeout = $2::interval',
        [this.groupid, timeout],
      );
      const node = this.#address(step.where);
      const id = rows[0]?.id ?? (await this.#insert(session, step, node, timeout));
      this.#last = id;
      if (step.event === 'after_promote' && (step.where === 'here' || step.where === 'there')) {
        this.#present = node;
      }
    });
  }

  /** Waits for the acknowledgement of the last report; for a while only. */
  wait(): void {
    this.#do(async (session) => {
      const until = performance.now() + WAIT_MS;
      while (performance.now() < until) {
        const { rows } = await session.query<{ status: string }>(
          'SELECT status FROM mpp_tasks WHERE id = $1',
          [this.#last],
        );
        if (!['pending', 'claimed'].includes(rows[0]?.status ?? 'none')) return;
        await again();
      }
    });
  }

  cancel(): void {
    this.#do(async (session) => {
      const id = this.#last;
      if (id === undefined) return;
      this.told.cancelled.add(id);
      // Refused where it is no longer pending.
      await session.query('SELECT mpp_cancel($1)', [id]).catch(rethrowUnless(['55000', '02000']));
    });
  }

  release(): void {
    this.#do(async (session) => {
      this.told.released = true;
      await session.query('SELECT mpp_release($1)', [this.groupid]);
    });
  }

  async drained(timeoutMs: number): Promise<void> {
    await waitFor(
      `the reports of group ${this.groupid} to be in the table`,
      () => Promise.resolve(this.isIdle),
      {
        timeoutMs,
      },
    );
  }

  async end(): Promise<void> {
    this.#over = true;
    await this.#work;
    await this.#session?.end().catch(() => undefined);
  }

  #address(where: Where): Address {
    const { two, stranger, nowhere } = this.#addresses;
    if (where === 'stranger') return stranger;
    if (where === 'nowhere') return nowhere;
    if (where === 'here') return this.#present;
    return text(two[0]) === text(this.#present) ? two[1] : two[0];
  }

  async #insert(
    session: Client,
    { event, pause }: ReportStep,
    node: Address,
    timeout: string,
  ): Promise<string> {
    const { rows } = await session.query<{ id: string }>(INSERT, [
      ...[event, this.groupid, node.host, node.port],
      ...[timeout, '200 ms', pause],
    ]);
    return rows[0]?.id ?? '';
  }

  #do(work: (session: Client) => Promise<void>): void {
    this.#pending += 1;
    this.#work = this.#work.then(async () => {
      while (!this.#over) {
        try {
          this.#session ??= await this.#open();
          await work(this.#session);
          break;
        } catch {
          const session = this.#session;
          this.#session = undefined;
          await session?.end().catch(() => undefined);
          await again();
        }
      }
      this.#pending -= 1;
    });
  }

  async #open(): Promise<Client> {
    const session = await this.#server.connect('faults hook');
    await session.query("SET statement_timeout = '3s'");
    return session;
  }
}

async function again(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
}

function rethrowUnless(codes: readonly string[]) {
  return (error: unknown): void => {
    if (!codes.includes((error as { code?: string }).code ?? '')) throw error;
  };
}

const INSERT = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, timeout, cooldown, pause)
  VALUES ($1, $2, $3, $4, $5, $6, $7)
  RETURNING id`;
