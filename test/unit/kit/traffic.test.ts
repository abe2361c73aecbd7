import { describe, expect, it } from 'vitest';
import { DatabaseError } from 'pg';
import { describeFailure, Tally } from '../../kit/traffic/report.js';
import { Ids, transactionWork, writerWork, type Work } from '../../kit/traffic/work.js';

const ROWS = { items: [10, 11, 12, 13], notes: [20, 21] };

function take(works: Generator<Work, never>, count: number): Work[] {
  return Array.from({ length: count }, () => works.next().value);
}

describe('the transactions of a client', () => {
  const works = take(transactionWork(ROWS), 500);
  const tables = works.map(({ statements }) =>
    statements.map(({ text }) => /items|notes|lookup/.exec(text)?.[0] ?? '').join(' '),
  );

  it('change two rows of items and one of notes, all its own, and read lookup', () => {
    for (const { statements } of works) {
      const ids = (table: string) =>
        statements.filter(({ text }) => text.includes(table)).map(({ values }) => values[0]);
      expect(new Set(ids('items')).size).toBe(2);
      expect(ROWS.items).toEqual(expect.arrayContaining(ids('items')));
      expect(ids('notes')).toHaveLength(1);
      expect(ROWS.notes).toEqual(expect.arrayContaining(ids('notes')));
      expect(ids('lookup')).toHaveLength(1);
    }
  });

  it('come in every order', () => {
    const orders = ['notes items items', 'items notes items', 'items items notes'];
    const expected = orders.flatMap((order) => [`lookup ${order}`, `${order} lookup`]);
    expect(new Set(tables)).toEqual(new Set(expected));
  });
});

describe('the work of a writer', () => {
  it('inserts ids that are accepted, and updates what was inserted', () => {
    const works = writerWork(new Ids(5, (id) => id % 2 === 0));
    const texts: string[] = [];
    for (let index = 0; index < 4; index += 1) {
      const { statements, done } = works.next().value;
      texts.push(`${statements[0]?.text.split(' ')[0] ?? ''} ${statements[0]?.values[0] ?? ''}`);
      // The second insert fails.
      if (index !== 2) done?.();
    }
    expect(texts).toEqual(['INSERT 6', 'UPDATE 6', 'INSERT 8', 'INSERT 10']);
  });
});

describe('a tally', () => {
  const EFFECTS = { inserted: 1, items: 2, notes: 3 };
  const failure = (code: string, kind: 'write' | 'transaction' = 'write') => {
    const error = new DatabaseError('it failed', 1, 'error');
    error.code = code;
    return { error, described: describeFailure(kind, 'COMMIT', 'a:1', error) };
  };

  it('distinguishes what is acknowledged from what is not known', () => {
    const tally = new Tally();
    for (const code of ['23505', '08006', '57P01']) {
      tally.began('write');
      const { error, described } = failure(code);
      tally.failed(described, EFFECTS, error);
    }
    tally.began('write');
    tally.succeeded('write', EFFECTS);
    expect(tally.report()).toMatchObject({
      failed: { write: 3, read: 0, transaction: 0 },
      acknowledged: EFFECTS,
      perhaps: { inserted: 2, items: 4, notes: 6 },
    });
  });

  it('counts deadlocks, and work in flight', async () => {
    const tally = new Tally();
    tally.began('transaction');
    tally.began('transaction');
    const { error, described } = failure('40P01', 'transaction');
    tally.failed(described, EFFECTS, error);
    const waiting = await tally.timed('transaction', () => Promise.resolve(tally.waiting));
    expect([waiting, tally.waiting]).toEqual([1, 0]);
    expect(tally.report()).toMatchObject({
      deadlocks: 1,
      inFlight: { write: 0, read: 0, transaction: 1 },
      failures: [{ kind: 'transaction', statement: 'COMMIT', sqlstate: '40P01', entry: 'a:1' }],
    });
  });
});
