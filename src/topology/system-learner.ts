import { isOfOtherGroup } from '../mpp/node-answer.js';
import type { Logger } from '../observe/logger.js';
import { errorText } from '../postgres/session.js';
import type { Queryable } from '../postgres/queryable.js';
import { formatAddress } from '../tasks/task.js';
import { Loop } from './loop.js';
import type { NodeChecker } from './node-checker.js';
import { learnSystem, readPrimaries, type RegisteredPrimary } from './systems.js';

export interface SystemLearnerOptions {
  readonly db: Queryable;
  /** See AbstractMPP.nodesQuery. */
  readonly nodesQuery: string;
  readonly checker: NodeChecker;
  readonly intervalMs: number;
  readonly signal: AbortSignal;
  readonly logger: Logger;
}

/** After so long a primary is asked again, so that its timeline is known. */
const AGAIN_MS = 600_000;
/** Groups that one round asks. */
const MOST_GROUPS = 64;
/** How long a round waits for answers. */
const ROUND_MS = 4_000;

/** Learns which system each group is, while its registered primary is up: once that is down it is too late. */
export class SystemLearner {
  readonly #options: SystemLearnerOptions;
  readonly #loop: Loop;
  readonly #askedAt = new Map<number, number>();
  readonly #said = new Map<number, string>();
  #failing = false;

  constructor(options: SystemLearnerOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#round(),
    });
  }

  start(): void {
    this.#loop.start();
  }

  /** A node may be about to go: learn what is not known yet. */
  wake(): void {
    this.#loop.wake();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  async #round(): Promise<void> {
    const { db, nodesQuery, checker, logger, signal } = this.#options;
    try {
      const now = performance.now();
      const due = (await readPrimaries(db, nodesQuery))
        .filter(
          ({ groupid, isNew }) =>
            isNew || now - (this.#askedAt.get(groupid) ?? -AGAIN_MS) >= AGAIN_MS,
        )
        // A group that does not answer must not keep others from being asked.
        .sort((one, other) => this.#triedAt(one) - this.#triedAt(other))
        .slice(0, MOST_GROUPS);
      const checks = await checker.askAll(
        due.map(({ address }) => address),
        ROUND_MS,
      );
      for (const [index, primary] of due.entries()) {
        this.#askedAt.set(primary.groupid, now);
        const check = checks[index];
        if (signal.aborted || check === undefined || !('answer' in check)) continue;
        const { inRecovery, localGroup, systemIdentifier, timeline } = check.answer;
        if (inRecovery || isOfOtherGroup(localGroup, primary.groupid)) continue;
        this.#compare(primary, systemIdentifier);
        await learnSystem(db, { ...primary, systemIdentifier, timeline });
      }
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) {
        logger.warn(
          { err: error },
          `which system each group is could not be read: ${errorText(error)}; trying again at the next heartbeat`,
        );
      }
      this.#failing = true;
    }
  }

  #triedAt({ groupid }: RegisteredPrimary): number {
    return this.#askedAt.get(groupid) ?? 0;
  }

  /** Says once that a registered primary is of another system: a failover of its group would be refused. */
  #compare(
    { groupid, address, ...known }: RegisteredPrimary,
    systemIdentifier: string | null,
  ): void {
    const wanted = known.systemIdentifier;
    const differs = wanted !== null && systemIdentifier !== null && wanted !== systemIdentifier;
    const said = differs ? systemIdentifier : '';
    if (said !== (this.#said.get(groupid) ?? '') && differs) {
      this.#options.logger.warn(
        { groupid, node: formatAddress(address), systemIdentifier, known: wanted },
        `the primary of group ${groupid} has another system identifier than its group is known to have; ` +
          `after pg_upgrade or a restore run SELECT mpp_accept_system(${groupid}), or its next failover is refused`,
      );
    }
    this.#said.set(groupid, said);
  }
}
