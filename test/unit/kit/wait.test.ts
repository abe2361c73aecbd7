import { describe, expect, it } from 'vitest';
import { waitFor, WaitTimeoutError } from '../../kit/servers/wait.js';

const SHORT = { timeoutMs: 30, intervalMs: 1 };

describe('waitFor', () => {
  it('returns the first value, which may be 0 or an empty string', async () => {
    const answers = [undefined, null, false, 0] as const;
    let looks = 0;
    const seen = await waitFor('a number', () => Promise.resolve(answers[looks++]), {
      intervalMs: 1,
    });
    expect([seen, looks]).toEqual([0, 4]);
  });

  it('takes an error for "not yet"', async () => {
    let looks = 0;
    const probe = () =>
      ++looks < 3 ? Promise.reject(new Error('starting up')) : Promise.resolve(true);
    await expect(waitFor('a start', probe, { intervalMs: 1 })).resolves.toBe(true);
  });

  it('says what it waited for and what it saw last', async () => {
    const wait = waitFor('the row', () => Promise.resolve(undefined), SHORT);
    await expect(wait).rejects.toThrow(/30 ms waiting for the row; last seen: undefined/);
  });

  it('keeps the last error as the cause', async () => {
    const refused = new Error('refused');
    const wait = waitFor('a server', () => Promise.reject(refused), SHORT);
    await expect(wait).rejects.toMatchObject({ name: WaitTimeoutError.name, cause: refused });
  });

  it('does not wait for a probe that hangs', async () => {
    const wait = waitFor('an answer', () => new Promise<never>(() => undefined), SHORT);
    await expect(wait).rejects.toThrow(/the probe never answered/);
  });
});
