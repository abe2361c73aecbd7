import pg, { type ClientBase, type Pool } from 'pg';

/** What PostgreSQL answers with this SQLSTATE. */
export function failure(code: string): pg.DatabaseError {
  return Object.assign(new pg.DatabaseError('refused', 0, 'error'), { code });
}

/** One server process, and who else has locks there: `held` names what is not to be had. */
export class Backend {
  readonly held = new Set<string>();
  readonly statements: string[] = [];
  readonly ours: string[] = [];
  /** How many cancels find no statement: they came before it. */
  cancelsLost = 0;
  cancels = 0;
  /** What a watch session cannot be had for. */
  watchError: Error | undefined;
  /** Of each client that waits for us: the lock that it waits for. */
  readonly waiting = new Map<number, string>();
  /** As long as it is there, a savepoint is not set. */
  delay: Promise<void> | undefined;
  readonly #marks: number[] = [];
  #waits: { name: string; resolve: () => void; reject: (error: Error) => void } | undefined;

  get waitsFor(): string | undefined {
    return this.#waits?.name;
  }

  free(name: string): void {
    this.held.delete(name);
    if (this.#waits?.name !== name) return;
    this.#waits.resolve();
    this.#waits = undefined;
  }

  fail(error: Error): void {
    this.#waits?.reject(error);
    this.#waits = undefined;
  }

  readonly client = {
    query: async (text: string) => {
      this.statements.push(text);
      const [verb, ...words] = text.split(' ');
      const name = words.at(-1) ?? '';
      const depth = Number(name.split('_').at(-1));
      if (verb === 'SAVEPOINT') {
        await this.delay;
        this.#marks[depth] = this.ours.length;
      } else if (verb === 'ROLLBACK') this.ours.splice(this.#marks[depth] ?? 0);
      else for (const one of text.split(';')) await this.#lock(one.trim().split(' ').at(-1) ?? '');
      return { rows: [] };
    },
  } as unknown as ClientBase;

  readonly watch = {
    connect: async () => {
      await Promise.resolve();
      if (this.watchError) throw this.watchError;
      return { query: this.#look, release: () => undefined };
    },
  } as unknown as Pool;

  readonly #look = ({ name, values }: { name: string; values: [number, number[]] }) => {
    if (name === 'mpp-cancel') return this.#cancel();
    const blocks = values[1].some((pid) => this.ours.includes(this.waiting.get(pid) ?? ''));
    return Promise.resolve({ rows: [{ blocks }] });
  };

  async #lock(name: string): Promise<void> {
    if (this.held.has(name)) {
      await new Promise<void>((resolve, reject) => (this.#waits = { name, resolve, reject }));
    }
    this.ours.push(name);
  }

  async #cancel(): Promise<{ rows: unknown[] }> {
    this.cancels += 1;
    await Promise.resolve();
    if (this.cancels > this.cancelsLost) this.fail(failure('57014'));
    return { rows: [] };
  }
}
