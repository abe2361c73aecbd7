import type { ClientBase, Pool } from 'pg';
import { failure } from './backend.js';

type Mode = 'ACCESS SHARE' | 'ROW EXCLUSIVE' | 'EXCLUSIVE' | 'ACCESS EXCLUSIVE';

const CONFLICTS: Readonly<Record<Mode, readonly Mode[]>> = {
  'ACCESS SHARE': ['ACCESS EXCLUSIVE'],
  'ROW EXCLUSIVE': ['EXCLUSIVE', 'ACCESS EXCLUSIVE'],
  EXCLUSIVE: ['ROW EXCLUSIVE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE'],
  'ACCESS EXCLUSIVE': ['ACCESS SHARE', 'ROW EXCLUSIVE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE'],
};

interface Request {
  readonly pid: number;
  readonly table: string;
  readonly mode: Mode;
}

interface Waiting extends Request {
  readonly grant: () => void;
  readonly reject: (error: Error) => void;
}

/** Table locks as PostgreSQL has them: granted, or in a queue in which nobody is overtaken. */
export class LockServer {
  #granted: Request[] = [];
  #queue: Waiting[] = [];
  #pids = 0;
  readonly #marks = new Map<string, number>();
  /** Pairs of sessions made by `session` of which one has waited for the other. */
  readonly ownWaits: string[] = [];
  readonly #own = new Set<number>();

  /** A session that takes locks for a hold, as LockSession has it. */
  session(): { readonly pid: number; readonly client: ClientBase } {
    const pid = this.#newPid();
    this.#own.add(pid);
    return { pid, client: this.#clientOf(pid) };
  }

  /** Another session in an open transaction that has these locks. @returns its server process. */
  async client(...locks: readonly (readonly [table: string, mode: Mode])[]): Promise<number> {
    const pid = this.#newPid();
    for (const [table, mode] of locks) await this.lock(pid, table, mode);
    return pid;
  }

  async lock(pid: number, table: string, mode: Mode, noWait = false): Promise<void> {
    const request = { pid, table, mode };
    const blockers = this.#blockersOf(request, this.#queue);
    if (blockers.length === 0) {
      this.#granted.push(request);
      return;
    }
    if (noWait) throw failure('55P03');
    const own = blockers.filter((blocker) => this.#own.has(blocker) && this.#own.has(pid));
    this.ownWaits.push(...own.map((blocker) => `${pid} for ${blocker}: ${table}`));
    await new Promise<void>((grant, reject) => this.#queue.push({ ...request, grant, reject }));
  }

  /** Ends its transaction. */
  end(pid: number): void {
    this.#granted = this.#granted.filter((request) => request.pid !== pid);
    this.#interrupt(pid);
  }

  /** Who has a table, or waits for it, and how. */
  of(table: string): string[] {
    const granted = this.#granted.filter((request) => request.table === table);
    const waiting = this.#queue.filter((request) => request.table === table);
    return [
      ...granted.map(({ pid, mode }) => `${pid} ${mode}`),
      ...waiting.map(({ pid, mode }) => `${pid} waits for ${mode}`),
    ];
  }

  isWaiting(pid: number): boolean {
    return this.#queue.some((request) => request.pid === pid);
  }

  /** What sessions that watch ask. */
  readonly watch = {
    connect: () => Promise.resolve({ query: this.#look.bind(this), release: () => undefined }),
  } as unknown as Pool;

  #newPid(): number {
    this.#pids += 1;
    return this.#pids;
  }

  #clientOf(pid: number): ClientBase {
    return {
      on: () => undefined,
      removeListener: () => undefined,
      release: () => this.end(pid),
      query: async (query: string | { readonly name: string }) => {
        await Promise.resolve();
        if (typeof query === 'string') await this.#run(pid, query);
        return { rows: [{ locked: true, pid }] };
      },
    } as unknown as ClientBase;
  }

  async #run(pid: number, statement: string): Promise<void> {
    const mine = this.#granted.filter((request) => request.pid === pid);
    const mark = `${pid} ${statement.split(' ').at(-1)}`;
    if (statement.startsWith('SAVEPOINT')) this.#marks.set(mark, mine.length);
    else if (statement.startsWith('ROLLBACK TO')) this.#free(mine.slice(this.#marks.get(mark)));
    else if (statement === 'ROLLBACK') this.end(pid);
    else await this.#lockTables(pid, statement);
  }

  async #lockTables(pid: number, statement: string): Promise<void> {
    const [, tables, mode, noWait] =
      /^LOCK TABLE (.*) IN ((?:ACCESS )?EXCLUSIVE) MODE( NOWAIT)?$/.exec(statement) ?? [];
    for (const table of tables?.replaceAll('ONLY ', '').split(', ') ?? []) {
      await this.lock(pid, table, mode as Mode, noWait !== undefined);
    }
  }

  #blockersOf({ pid, table, mode }: Request, before: readonly Request[]): number[] {
    const inTheWay = (request: Request): boolean =>
      request.table === table && request.pid !== pid && CONFLICTS[mode].includes(request.mode);
    const isMine = this.#granted.some((request) => request.table === table && request.pid === pid);
    // Who has a lock already is not made to wait behind those who wait for it.
    const all = isMine ? this.#granted : [...this.#granted, ...before];
    return all.filter(inTheWay).map((request) => request.pid);
  }

  #free(requests: readonly Request[]): void {
    this.#granted = this.#granted.filter((request) => !requests.includes(request));
    this.#grantWaiting();
  }

  #grantWaiting(): void {
    for (const request of [...this.#queue]) {
      const before = this.#queue.slice(0, this.#queue.indexOf(request));
      if (this.#blockersOf(request, before).length > 0) continue;
      this.#queue = this.#queue.filter((other) => other !== request);
      this.#granted.push(request);
      request.grant();
    }
  }

  #interrupt(pid: number): void {
    for (const { reject } of this.#queue.filter((request) => request.pid === pid)) {
      reject(failure('57014'));
    }
    this.#queue = this.#queue.filter((request) => request.pid !== pid);
    this.#grantWaiting();
  }

  async #look({ name, values }: { name: string; values: unknown[] }): Promise<{ rows: unknown[] }> {
    await Promise.resolve();
    const [pid, others] = values as [number, number[]];
    if (name === 'mpp-cancel') this.#interrupt(pid);
    if (name === 'mpp-blocks')
      return { rows: [{ blocks: others.some((o) => this.blocks(pid, o)) }] };
    if (name === 'mpp-describe') {
      return { rows: (values[0] as number[]).map((one) => ({ described: `pid ${one}` })) };
    }
    return { rows: [] };
  }

  /** Whether `waiter` waits for a lock or a place of `blocker`. */
  blocks(blocker: number, waiter: number): boolean {
    const request = this.#queue.find(({ pid }) => pid === waiter);
    if (!request) return false;
    const before = this.#queue.slice(0, this.#queue.indexOf(request));
    return this.#blockersOf(request, before).includes(blocker);
  }
}
