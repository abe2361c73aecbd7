import type { Client, Notification } from 'pg';
import { z } from 'zod';

const PAYLOAD = z.object({ id: z.coerce.string(), status: z.string() });

const TIMEOUT_MS = 10_000;
/** No row leaves one of these, so what else was waited for does not come any more. */
const ENDS = ['done', 'superseded', 'discarded', 'expired', 'rolled_back', 'failed', 'cancelled'];

/** Waits for acknowledgements on one channel, in a session that does nothing else. */
export class Acknowledgements {
  readonly #session: Client;
  readonly #seen = new Map<string, number>();
  #wake: (() => void)[] = [];

  private constructor(session: Client) {
    this.#session = session;
  }

  static async on(session: Client, channel: string): Promise<Acknowledgements> {
    const acknowledgements = new Acknowledgements(session);
    session.on('notification', acknowledgements.#receive);
    await session.query("SELECT set_config('application_name', $1, false)", [`bench ${channel}`]);
    await session.query(`LISTEN ${session.escapeIdentifier(channel)}`);
    return acknowledgements;
  }

  /**
   * Resolves once the task has this status. Each status can be waited for once.
   *
   * @returns when the notification arrived, by performance.now()
   * @throws Error when the task has ended otherwise, or it takes longer than `timeoutMs`
   */
  async received(id: string, status: string, timeoutMs = TIMEOUT_MS): Promise<number> {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const at = this.#seen.get(`${id} ${status}`);
      if (at !== undefined) {
        // A run has thousands of rounds.
        this.#seen.delete(`${id} ${status}`);
        return at;
      }
      const end = ENDS.find((other) => this.#seen.has(`${id} ${other}`));
      if (end !== undefined) throw new Error(`task ${id} is ${end}, not ${status}`);
      if (performance.now() > until) {
        throw new Error(`task ${id} is not ${status} after ${timeoutMs} ms`);
      }
      await this.#next(until - performance.now());
    }
  }

  async #next(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const bound = setTimeout(resolve, Math.max(ms, 1));
      this.#wake.push(() => {
        clearTimeout(bound);
        resolve();
      });
    });
  }

  readonly #receive = ({ payload }: Notification): void => {
    const { id, status } = PAYLOAD.parse(JSON.parse(payload ?? ''));
    this.#seen.set(`${id} ${status}`, performance.now());
    const wake = this.#wake;
    this.#wake = [];
    for (const one of wake) one();
  };
}
