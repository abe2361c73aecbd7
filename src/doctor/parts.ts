import { DatabaseStateError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { isSessionLost, sqlState } from '../postgres/sqlstate.js';
import type { Failure } from './observed.js';

/** Reads one part after the other on one session, so that a part which fails costs no other. */
export class Parts {
  readonly #node: string;
  readonly #failures: Failure[];
  #isLost = false;

  /** @param failures where it is noted what could not be read */
  constructor(node: string, failures: Failure[]) {
    this.#node = node;
    this.#failures = failures;
  }

  /**
   * Never throws. Once the session is lost, nothing else is tried.
   *
   * @param role may read it where this role may not
   */
  async read<T>(part: string, role: string, work: () => Promise<T>): Promise<T | null> {
    if (this.#isLost) return null;
    try {
      return await work();
    } catch (error) {
      const isState = error instanceof DatabaseStateError;
      this.#isLost = !isState && isSessionLost(error);
      const isRight = sqlState(error) === '42501' || (isState && error.code === 'HIDDEN_GUCS');
      const failure = { part, node: this.#node, reason: errorText(error) };
      this.#failures.push({ ...failure, role: isRight ? role : null });
      return null;
    }
  }
}
