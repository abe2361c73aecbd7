import { describe, expect, it } from 'vitest';
import { Turn } from '../../src/wait.js';

describe('a turn', () => {
  it('is taken one after the other, in the order of asking', async () => {
    const turn = new Turn();
    const said: string[] = [];
    const first = await turn.take();
    const later = ['second', 'third'].map(async (name) => {
      const end = await turn.take();
      said.push(`${name} begins`);
      await Promise.resolve();
      said.push(`${name} ends`);
      end();
    });
    await new Promise(setImmediate);
    expect(said).toEqual([]);
    first();
    await Promise.all(later);
    expect(said).toEqual(['second begins', 'second ends', 'third begins', 'third ends']);
  });

  it('that is ended twice lets only one go on', async () => {
    const turn = new Turn();
    const end = await turn.take();
    const second = turn.take();
    let third = false;
    const last = turn.take().then((endIt) => {
      third = true;
      endIt();
    });
    end();
    end();
    const endSecond = await second;
    await new Promise(setImmediate);
    expect(third).toBe(false);
    endSecond();
    await last;
    expect(third).toBe(true);
  });
});
