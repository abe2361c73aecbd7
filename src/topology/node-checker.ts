import type pg from 'pg';
import type { AskNode } from '../mpp/abstract.js';
import type { NodeCheck } from '../mpp/node-answer.js';
import { nodeConnection, type NodeCredentials } from '../postgres/connection/database-url.js';
import { errorText, openSession } from '../postgres/session.js';
import { formatAddress, type Address } from '../address.js';
import { Turn, within } from '../wait.js';

/** How long a node may take to answer, in milliseconds. */
export const CHECK_MS = 2_000;
/** How long a session with a node is kept for the next question. */
const KEEP_MS = 60_000;
/** Nodes that one list has asked at the same time. */
const AT_ONCE = 16;

interface NodeCheckerOptions {
  readonly credentials: NodeCredentials;
  /** See AbstractMPP.prepareAsking. */
  readonly prepareAsking: (session: pg.Client) => Promise<AskNode>;
}

const NOT_ASKED: NodeCheck = { silence: 'others did not answer, so it was not asked yet' };
const STOPPING: NodeCheck = { silence: 'this controller is stopping' };

/** A session with one node, and how it is asked. */
interface Opened {
  readonly session: pg.Client;
  readonly ask: AskNode;
}

interface Entry {
  readonly opening: Promise<Opened>;
  /** False while it serves a list of nodes alone. */
  isKept: boolean;
  opened: Opened | undefined;
  idle: NodeJS.Timeout | undefined;
}

/**
 * Asks nodes what they are. The session with a node is kept for a minute, so that a node that was asked
 * before, or that `prefetch` has named, answers in one round trip.
 */
export class NodeChecker {
  readonly #options: NodeCheckerOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #waiting = new Set<() => void>();
  #stopped = false;

  constructor(options: NodeCheckerOptions) {
    this.#options = options;
  }

  /** Begins to open the session with a node that will be asked soon. */
  prefetch(address: Address): void {
    if (!this.#stopped) this.#enter(address).isKept = true;
  }

  /**
   * Asks one node. Never throws.
   *
   * @param waitMs after how long it counts as silent. Opening its session goes on meanwhile.
   */
  async ask(address: Address, waitMs = CHECK_MS): Promise<NodeCheck> {
    this.prefetch(address);
    return this.#askWithin(address, waitMs);
  }

  /**
   * Asks many nodes, a few at a time, and keeps no session for it.
   *
   * @param waitMs how long all of it may take; who has not been asked by then counts as silent.
   */
  async askAll(addresses: readonly Address[], waitMs: number): Promise<NodeCheck[]> {
    const until = performance.now() + waitMs;
    const checks = new Array<NodeCheck>(addresses.length).fill(NOT_ASKED);
    const queue = [...addresses.entries()];
    const work = async (): Promise<void> => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
        const left = until - performance.now();
        if (left <= 0) return;
        const [index, address] = next;
        checks[index] = await this.#askWithin(address, Math.ceil(left));
        const key = formatAddress(address);
        if (this.#entries.get(key)?.isKept === false) this.#discard(key);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    return checks;
  }

  /** Closes all sessions. Idempotent. */
  stop(): void {
    this.#stopped = true;
    for (const key of [...this.#entries.keys()]) this.#discard(key);
    for (const giveUp of this.#waiting) giveUp();
  }

  async #askWithin(address: Address, waitMs: number): Promise<NodeCheck> {
    let giveUp = (): void => undefined;
    const asked = new Promise<NodeCheck>((resolve) => {
      giveUp = () => resolve(STOPPING);
      void this.#ask(address).then(resolve);
    });
    this.#waiting.add(giveUp);
    try {
      return await within(waitMs, asked, { silence: `no answer within ${waitMs} ms` });
    } finally {
      this.#waiting.delete(giveUp);
    }
  }

  async #ask(address: Address): Promise<NodeCheck> {
    const key = formatAddress(address);
    for (;;) {
      if (this.#stopped) return STOPPING;
      const entry = this.#enter(address);
      const wasKept = entry.opened !== undefined;
      try {
        const { ask } = await entry.opening;
        return { answer: await ask() };
      } catch (error) {
        this.#discard(key, entry);
        // A kept session may have been terminated; a new one tells whether the server is there.
        if (!wasKept) return { silence: errorText(error) };
      }
    }
  }

  #enter(address: Address): Entry {
    const key = formatAddress(address);
    const entry = this.#entries.get(key) ?? this.#open(key, address);
    clearTimeout(entry.idle);
    entry.idle = setTimeout(() => this.#discard(key, entry), KEEP_MS);
    entry.idle.unref();
    return entry;
  }

  #open(key: string, address: Address): Entry {
    const entry: Entry = {
      opening: this.#connect(address),
      isKept: false,
      opened: undefined,
      idle: undefined,
    };
    this.#entries.set(key, entry);
    entry.opening.then(
      (opened) => {
        entry.opened = opened;
        if (this.#entries.get(key) !== entry) close(opened);
        else opened.session.once('end', () => this.#discard(key, entry));
      },
      // The next question opens a new one. A question that waits for this one reports the error.
      () => this.#discard(key, entry),
    );
    return entry;
  }

  async #connect(address: Address): Promise<Opened> {
    const { credentials, prepareAsking } = this.#options;
    const bounds = { connectionTimeoutMillis: CHECK_MS, query_timeout: CHECK_MS };
    const session = await openSession(
      { ...nodeConnection(credentials, address), ...bounds },
      'check',
    );
    try {
      const ask = await prepareAsking(session);
      // A session takes one statement at a time, and an earlier answer may be stale.
      const turn = new Turn();
      return { session, ask: () => turn.run(ask) };
    } catch (error) {
      session.connection.stream.destroy();
      throw error;
    }
  }

  #discard(key: string, entry = this.#entries.get(key)): void {
    if (entry === undefined) return;
    clearTimeout(entry.idle);
    if (this.#entries.get(key) === entry) this.#entries.delete(key);
    if (entry.opened) close(entry.opened);
  }
}

/** A goodbye would wait for a host that has vanished. */
function close({ session }: Opened): void {
  session.connection.stream.destroy();
}
