import type { Effects, WorkKind } from './report.js';

/** One statement, with its parameters. */
export interface Statement {
  readonly text: string;
  readonly values: readonly number[];
}

/** What a client does before it thinks: one statement, or the statements of a transaction. */
export interface Work {
  readonly kind: WorkKind;
  /** More than one, or of kind `transaction`: sent between BEGIN and COMMIT. */
  readonly statements: readonly Statement[];
  readonly effects: Effects;
  /** Called once it has succeeded. */
  readonly done?: () => void;
}

/** Rows that one client's transactions change, and nobody else's. */
export interface OwnRows {
  readonly items: readonly number[];
  readonly notes: readonly number[];
}

const NOTHING: Effects = { inserted: 0, items: 0, notes: 0 };
const INSERT = 'INSERT INTO items VALUES ($1, $2)';
const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';
const UPDATE_NOTE = 'UPDATE notes SET v = v + 1 WHERE id = $1';
const SELECT = 'SELECT * FROM items WHERE id = $1';
const SELECT_LOOKUP = 'SELECT * FROM lookup WHERE id = $1';

/** Hands out ids to insert, and remembers those that are there. */
export class Ids {
  readonly #accepts: (id: number) => boolean;
  readonly #inserted: number[] = [];
  #next: number;

  constructor(first: number, accepts: (id: number) => boolean) {
    this.#next = first;
    this.#accepts = accepts;
  }

  take(): number {
    while (!this.#accepts(this.#next)) this.#next += 1;
    return this.#next++;
  }

  takeSeveral(count: number): number[] {
    return Array.from({ length: count }, () => this.take());
  }

  inserted(id: number): void {
    this.#inserted.push(id);
  }

  /** An id inserted before, or one that is not there while none is. */
  any(): number {
    return anyOf(this.#inserted) ?? this.#next;
  }
}

function anyOf(numbers: readonly number[]): number | undefined {
  return numbers[Math.floor(Math.random() * numbers.length)];
}

/** A row inserted is then updated by the same client, so that no two wait for each other's row. */
export function* writerWork(ids: Ids): Generator<Work, never> {
  let unchanged: number[] = [];
  for (;;) {
    const id = ids.take();
    yield {
      kind: 'write',
      statements: [{ text: INSERT, values: [id, 0] }],
      effects: { ...NOTHING, inserted: 1 },
      done: () => {
        ids.inserted(id);
        unchanged.push(id);
      },
    };
    for (const row of unchanged) {
      const statements = [{ text: UPDATE, values: [row] }];
      yield { kind: 'write', statements, effects: { ...NOTHING, items: 1 } };
    }
    unchanged = [];
  }
}

export function* readerWork(ids: Ids): Generator<Work, never> {
  for (;;) {
    const statements = [{ text: SELECT, values: [ids.any()] }];
    yield { kind: 'read', statements, effects: NOTHING };
  }
}

/**
 * Transactions over several shards and tables in varying order: two rows of items, a row of notes
 * before, between or after them, a read of lookup at the start or the end.
 *
 * By themselves they cannot deadlock: the rows of items are the client's own, and a transaction
 * takes one row of notes, so that who has a row that others want never waits for another.
 */
export function* transactionWork(rows: OwnRows): Generator<Work, never> {
  for (;;) {
    const first = anyOf(rows.items) ?? 0;
    const second = anyOf(rows.items.filter((id) => id !== first)) ?? first;
    const statements = [first, second].map((id) => ({ text: UPDATE, values: [id] }));
    const place = Math.floor(Math.random() * 3);
    statements.splice(place, 0, { text: UPDATE_NOTE, values: [anyOf(rows.notes) ?? 0] });
    const read = { text: SELECT_LOOKUP, values: [1] };
    yield {
      kind: 'transaction',
      statements: Math.random() < 0.5 ? [read, ...statements] : [...statements, read],
      effects: { inserted: 0, items: 2, notes: 1 },
    };
  }
}
