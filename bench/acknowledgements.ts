import type { Client, Notification } from 'pg';
import { z } from 'zod';

const PAYLOAD = z.object({ id: z.coerce.string(), status: z.string() });

const TIMEOUT_MS = 10_000;

/** Waits for acknowledgements on one channel, in a session that does nothing else. */
export class Acknowledgements {
  readonly #session: Client;
  readonly #seen = new Map<string, number>();
  #wake: () => void = () => undefined;

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
   * Resolves once the task has this status.
   *
   * @returns when the notification arrived, by performance.now()
   * @throws Error when it takes longer than 10 s
   */
  async received(id: string, status: string): Promise<number> {
    const key = `${id} ${status}`;
    const until = performance.now() + TIMEOUT_MS;
    for (;;) {
      const at = this.#seen.get(key);
      if (at !== undefined) {
        this.#seen.clear();
        return at;
      }
      if (performance.now() > until) throw new Error(`task ${id} is not ${status} after 10 s`);
      await this.#next(until - performance.now());
    }
  }

  async #next(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const bound = setTimeout(resolve, Math.max(ms, 1));
      this.#wake = () => {
        clearTimeout(bound);
        resolve();
      };
    });
  }

  readonly #receive = ({ payload }: Notification): void => {
    const { id, status } = PAYLOAD.parse(JSON.parse(payload ?? ''));
    this.#seen.set(`${id} ${status}`, performance.now());
    this.#wake();
  };
}
