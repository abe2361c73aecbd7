import { DatabaseStateError } from '../errors.js';
import type { Controller } from './controller.js';

/** A controller, and the name of the database that it is for. */
export interface Member {
  readonly database: string;
  readonly controller: Controller;
}

/**
 * The controllers of several databases on the same nodes, as one: what one cannot do its work for ends
 * all. Which process is active is told for each database by itself.
 */
export class SeveralControllers implements Controller {
  readonly finished: Promise<void>;
  readonly #members: readonly Member[];

  constructor(members: readonly Member[]) {
    this.#members = members;
    this.finished = this.#finish();
    this.finished.catch(() => undefined);
  }

  async start(): Promise<void> {
    await Promise.all(this.#members.map(({ controller }) => controller.start()));
  }

  async stop(): Promise<void> {
    await Promise.all(this.#members.map(({ controller }) => controller.stop()));
  }

  async #finish(): Promise<void> {
    try {
      await Promise.all(this.#members.map((member) => finishOf(member)));
    } catch (error) {
      await this.stop();
      throw error;
    }
  }
}

async function finishOf({ database, controller }: Member): Promise<void> {
  try {
    await controller.finished;
  } catch (error) {
    if (!(error instanceof DatabaseStateError)) throw error;
    const { code, message, retryable } = error;
    throw new DatabaseStateError(code, `database ${database}: ${message}`, { retryable });
  }
}
