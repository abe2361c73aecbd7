import type { Pool } from 'pg';
import { describe, expect, it, vi } from 'vitest';
import { SessionLostError } from '../../src/errors.js';
import { queryAgain, queryOnce } from '../../src/postgres/queries.js';
import { failure } from '../kit/faults/backend.js';

const ENDED = failure('57P01');
const QUERY = { text: 'SELECT 1 AS one' };
const ANSWER = { rows: [{ one: 1 }] };

/** A pool whose sessions answer as they are told, each once. */
function poolOf(...answers: (Error | typeof ANSWER)[]) {
  const released: unknown[] = [];
  const connect = vi.fn(async () => {
    await Promise.resolve();
    const answer = answers.shift() ?? new Error('no session left');
    return {
      query: async () => {
        await Promise.resolve();
        if (answer instanceof Error) throw answer;
        return answer;
      },
      release: (isLost?: boolean) => released.push(isLost ?? false),
    };
  });
  return { pool: { connect } as unknown as Pool, connect, released };
}

describe('a statement whose session was lost', () => {
  it('is run on the next one, however many the pool has kept that are gone', async () => {
    const { pool, released } = poolOf(ENDED, ENDED, new Error('read ECONNRESET'), ENDED, ANSWER);
    expect(await queryAgain(pool, QUERY)).toBe(ANSWER);
    expect(released).toEqual([true, true, true, true, false]);
  });

  it('is not run again when it may not', async () => {
    const { pool, connect } = poolOf(ENDED, ANSWER);
    await expect(queryOnce(pool, QUERY)).rejects.toBeInstanceOf(SessionLostError);
    expect(connect).toHaveBeenCalledTimes(1);
  });

  it('is not run again by a server that has fallen silent', async () => {
    const { pool, connect } = poolOf(ENDED, ANSWER);
    const clock = vi.spyOn(performance, 'now').mockReturnValueOnce(0).mockReturnValue(1_500);
    await expect(queryAgain(pool, QUERY)).rejects.toBeInstanceOf(SessionLostError);
    expect(connect).toHaveBeenCalledTimes(1);
    clock.mockRestore();
  });
});

it('the error of a statement is its own, and its session is kept', async () => {
  const refused = failure('42501');
  const { pool, released } = poolOf(refused, ANSWER);
  await expect(queryAgain(pool, QUERY)).rejects.toBe(refused);
  expect(released).toEqual([false]);
});

it('a server without a session to be had is not asked again', async () => {
  const refused = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
  const connect = vi.fn(() => Promise.reject(refused));
  await expect(queryAgain({ connect } as unknown as Pool, QUERY)).rejects.toBe(refused);
  expect(connect).toHaveBeenCalledTimes(1);
});
