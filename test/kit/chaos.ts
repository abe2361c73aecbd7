import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from 'pg';
import { waitFor, type Server } from './servers/index.js';

/** Numbers from 0 up to 1 that are the same again for the same seed: mulberry32. */
export function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

export function pick<T>(random: () => number, things: readonly T[]): T {
  const thing = things[Math.floor(random() * things.length)];
  if (thing === undefined) throw new Error('nothing to pick from');
  return thing;
}

interface Address {
  readonly host: string;
  readonly port: number;
}

/** What an HA side may report in a row: all of it, a part, or twice the same. */
const STORIES = ['switchover', 'crash', 'fact', 'restart', 'nothing follows', 'burst'] as const;

/**
 * Reports for one group without end, as an HA side whose group moves between the two names of its
 * server. Waits for each acknowledgement like a hook does, but for no longer than that.
 */
export class ReportStream {
  readonly #session: Client;
  readonly #groupid: number;
  readonly #port: number;
  readonly #random: () => number;
  /** Where the group is by what was reported last. */
  #primary: Address;
  #count = 0;

  private constructor(session: Client, groupid: number, primary: Address, random: () => number) {
    this.#session = session;
    this.#groupid = groupid;
    this.#port = primary.port;
    this.#primary = primary;
    this.#random = random;
  }

  static async open(
    coordinator: Server,
    groupid: number,
    primary: Address,
    random: () => number,
  ): Promise<ReportStream> {
    return new ReportStream(await coordinator.connect('hook'), groupid, primary, random);
  }

  get groupid(): number {
    return this.#groupid;
  }

  get last(): string {
    return `${this.#primary.host}:${this.#primary.port}`;
  }

  /** How many reports it has made. */
  get count(): number {
    return this.#count;
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) await this.#tell(pick(this.#random, STORIES));
    await this.#session.end();
  }

  async #tell(story: (typeof STORIES)[number]): Promise<void> {
    const [old, next] = [this.#primary, this.#other()];
    switch (story) {
      case 'switchover':
        await this.#report('before_demote', old, '5s');
        await this.#report('before_promote', next, '5s');
        return this.#promoted(next);
      case 'crash':
        await this.#report('suspect', old, '5s');
        return this.#promoted(next);
      case 'fact':
        return this.#promoted(next);
      case 'restart':
        await this.#report('before_demote', old, '5s');
        return this.#promoted(old);
      case 'nothing follows':
        return this.#report('before_demote', old, '300ms');
      case 'burst':
        for (let times = 0; times < 3; times += 1) {
          await this.#insert('after_promote', this.#other(), '5s');
        }
        return;
    }
  }

  #other(): Address {
    return {
      host: this.#primary.host === 'localhost' ? '127.0.0.1' : 'localhost',
      port: this.#port,
    };
  }

  async #promoted(node: Address): Promise<void> {
    await this.#report('after_promote', node, '5s');
  }

  async #report(event: string, node: Address, timeout: string): Promise<void> {
    const id = await this.#insert(event, node, timeout);
    await waitFor(
      `task ${id} (${event}) to be acknowledged`,
      async () => {
        const { rows } = await this.#session.query<{ status: string }>(
          'SELECT status FROM mpp_tasks WHERE id = $1',
          [id],
        );
        return !['pending', 'claimed'].includes(rows[0]?.status ?? 'pending');
      },
      { timeoutMs: 60_000 },
    );
  }

  async #insert(event: string, { host, port }: Address, timeout: string): Promise<string> {
    const { rows } = await this.#session.query<{ id: string }>(
      `INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, timeout, cooldown)
       VALUES ($1, $2, $3, $4, $5, '1s') RETURNING id`,
      [event, this.#groupid, host, port, timeout],
    );
    this.#count += 1;
    if (event === 'after_promote') this.#primary = { host, port };
    return rows[0]?.id ?? '';
  }
}

/** Strikes once a second until the signal, which is the fault itself and no wait. */
export async function onceASecond(signal: AbortSignal, strike: () => Promise<void>): Promise<void> {
  for (;;) {
    await delay(1_000, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return;
    await strike();
  }
}
