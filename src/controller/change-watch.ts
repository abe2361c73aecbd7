import type { ChangeBlocker } from '../mpp/abstract.js';
import type { BlockerNote } from '../tasks/task.js';
import { Loop } from '../wait.js';

const LOOK_MS = 250;
/** How long a transaction may block a change before the log names it, in milliseconds. */
export const NAMED_AFTER_MS = 1_000;

interface ChangeWatchOptions {
  /** Reads what blocks the change, and ends those of the keys that do. */
  readonly read: (overdue: readonly string[]) => Promise<readonly ChangeBlocker[]>;
  /** Cancels the statement that waits. */
  readonly interrupt: () => Promise<void>;
  /**
   * Reads which processes wait for the hold of this change, on other nodes. Such a statement, mostly DDL on its
   * way through the nodes, can go on only after the change that it blocks.
   */
  readonly waitersForHold: () => Promise<ReadonlySet<number>>;
  /** Cancels the statement of a process that waits for the hold and blocks its change. */
  readonly cancel: (blocker: ChangeBlocker) => Promise<void>;
  /** How long a session may block the change before it is terminated, in milliseconds. */
  readonly cooldownMs: number;
  /** Called with a sentence when what blocks the change for a second is not what it was. */
  readonly onBlocked: (sentence: string, blockers: readonly BlockerNote[]) => void;
  /** Called for a session that was terminated, and how long it had blocked the change. */
  readonly onEnded: (blocker: ChangeBlocker, blockedMs: number) => void;
}

/** What one look found, and what follows from it. */
interface Judgement {
  /** When each transaction was first seen to block the change; those that do no more are left out. */
  readonly since: ReadonlyMap<string, number>;
  /** Transactions that are terminated if they still block it at the next look. */
  readonly overdue: readonly string[];
  /** Those that the log names. */
  readonly long: readonly ChangeBlocker[];
  /** Sessions past their cooldown that only the database itself can end, where nothing else blocks the change. */
  readonly forced: readonly ChangeBlocker[];
}

/** Decides what follows from a look at what blocks a change. Pure. */
export function judgeBlockers(
  blockers: readonly ChangeBlocker[],
  before: ReadonlyMap<string, number>,
  now: number,
  cooldownMs: number,
): Judgement {
  const since = new Map(blockers.map(({ key }) => [key, before.get(key) ?? now]));
  const blockedMs = ({ key }: ChangeBlocker): number => now - (since.get(key) ?? now);
  const overdue = blockers.filter(
    (blocker) => blocker.kind === 'session' && blockedMs(blocker) >= cooldownMs,
  );
  const isForced =
    blockers.every(({ kind }) => kind === 'session') && overdue.some(({ mayEnd }) => !mayEnd);
  return {
    since,
    overdue: overdue.map(({ key }) => key),
    long: blockers.filter((blocker) => blockedMs(blocker) >= NAMED_AFTER_MS),
    forced: isForced ? overdue : [],
  };
}

/** Whether a blocker waits for the change itself: it would stay until it is ended. */
function isCircular({ kind, mayEnd, pid }: ChangeBlocker, waiters: ReadonlySet<number>): boolean {
  return kind === 'session' && mayEnd && waiters.has(pid);
}

/** Watches a change of the catalog that may have to wait for locks, until `stop`. */
export class ChangeWatch {
  readonly #options: ChangeWatchOptions;
  readonly #loop: Loop;
  readonly #abort = new AbortController();
  readonly #firstLook: NodeJS.Timeout;
  #since: ReadonlyMap<string, number> = new Map();
  #overdue: readonly string[] = [];
  #named = '';
  #sentence: string | undefined;
  #forced: readonly ChangeBlocker[] = [];
  #isForcing = false;

  constructor(options: ChangeWatchOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: LOOK_MS,
      signal: this.#abort.signal,
      work: (signal) => this.#look(signal),
    });
    this.#firstLook = setTimeout(() => this.#loop.start(), LOOK_MS);
  }

  /** What has blocked the change for more than a second, in a sentence. */
  get sentence(): string | undefined {
    return this.#sentence;
  }

  /** Sessions past their cooldown that the database has to end; the statement was cancelled for it. */
  get forced(): readonly ChangeBlocker[] {
    return this.#forced;
  }

  /** The database is asked now to end what blocks the change. Who blocks all changes must not be ended by it. */
  force(): void {
    this.#isForcing = true;
  }

  /** Resolves when nothing that it does can reach the session any more. */
  async stop(): Promise<void> {
    clearTimeout(this.#firstLook);
    this.#abort.abort();
    await this.#loop.stop();
  }

  async #look(signal: AbortSignal): Promise<void> {
    const { read, interrupt, waitersForHold, cancel, cooldownMs, onEnded } = this.#options;
    try {
      const blockers = await read(this.#overdue);
      const now = performance.now();
      for (const blocker of blockers.filter(({ ended }) => ended)) {
        onEnded(blocker, now - (this.#since.get(blocker.key) ?? now));
      }
      if (signal.aborted) return;
      const rest = blockers.filter(({ ended }) => !ended);
      const judgement = judgeBlockers(rest, this.#since, now, cooldownMs);
      this.#since = judgement.since;
      this.#overdue = judgement.overdue;
      this.#tell(judgement.long, now);
      if (rest.some(({ kind }) => kind === 'session')) {
        const waiters = await waitersForHold();
        await Promise.all(rest.filter((one) => isCircular(one, waiters)).map(cancel));
      }
      if (this.#isForcing) {
        if (rest.some(({ kind }) => kind !== 'session')) await interrupt();
      } else if (judgement.forced.length > 0 && this.#forced.length === 0) {
        this.#forced = judgement.forced;
        await interrupt();
      }
    } catch {
      // A look that fails is only one less: the bounds of the statement hold without it.
    }
  }

  #tell(long: readonly ChangeBlocker[], now: number): void {
    const keys = long.map(({ key }) => key).join();
    if (keys === '' || keys === this.#named) return;
    this.#named = keys;
    const { cooldownMs, onBlocked } = this.#options;
    const notes = long.map((blocker) => {
      const leftMs = cooldownMs - (now - (this.#since.get(blocker.key) ?? now));
      return noteOf(blocker, new Date(Date.now() + Math.max(0, leftMs)));
    });
    this.#sentence = `the change of pg_dist_node waits for ${notes.map(({ described }) => described).join('; ')}`;
    onBlocked(this.#sentence, notes);
  }
}

/** @param endsAt when its cooldown is over */
function noteOf(blocker: ChangeBlocker, endsAt: Date): BlockerNote {
  const { kind, pid, usename, application, state, since, mayEnd, described } = blocker;
  return {
    server: null,
    pid: pid === 0 ? null : pid,
    usename,
    application_name: application,
    state,
    since: since?.toISOString() ?? null,
    blocks: 'change',
    ends_at: kind === 'session' && mayEnd ? endsAt.toISOString() : null,
    described: `${described}, ${consequence(kind, endsAt)}`,
  };
}

function consequence(kind: ChangeBlocker['kind'], endsAt: Date): string {
  switch (kind) {
    case 'block':
      return 'which keeps pg_dist_node from being changed and is waited for';
    case 'prepared':
      return 'which COMMIT PREPARED or ROLLBACK PREPARED ends';
    case 'own':
      return 'a session of a controller, which is waited for';
    case 'session':
      return `which is terminated at ${endsAt.toISOString().slice(11, 19)} UTC if it still blocks the change`;
  }
}
