import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { divideSessions, LEAST_SESSIONS } from '../../src/postgres/pool.js';

describe('the sessions of a controller', () => {
  it('are at most what is asked for and half of what the server has, and never too few for one hold', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.integer({ min: 1, max: 5_000 }),
        fc.integer({ min: 0, max: 20 }),
        (most, max, reserved) => {
          const { total, queue, groups, pause, watch } = divideSessions(most, { max, reserved });
          expect(total).toBeGreaterThanOrEqual(LEAST_SESSIONS);
          if (total > LEAST_SESSIONS) {
            expect(total).toBeLessThanOrEqual(most);
            expect(total).toBeLessThanOrEqual((max - reserved) / 2);
          }
          expect(queue + groups + pause + watch + 4).toBe(total);
          for (const part of [queue, groups, pause, watch]) expect(part).toBeGreaterThan(0);
        },
      ),
    );
  });

  it('that are kept open while nothing is held are at most a quarter of what the server has', () => {
    fc.assert(
      fc.property(fc.integer({ min: 30, max: 5_000 }), (max) => {
        const { kept, queue } = divideSessions(50, { max, reserved: 3 });
        expect(4 + queue + kept.groups + kept.pause + kept.watch).toBeLessThanOrEqual(
          (max - 3) / 4 + 1,
        );
        for (const part of Object.values(kept)) expect(part).toBeGreaterThanOrEqual(0);
      }),
    );
  });

  it.each([
    [100, { total: 48, queue: 4, groups: 27, pause: 9, watch: 4 }],
    [300, { total: 50, queue: 4, groups: 29, pause: 9, watch: 4 }],
    [20, { total: 17, queue: 2, groups: 1, pause: 9, watch: 1 }],
  ])('are divided like this with max_connections %i', (max, expected) => {
    expect(divideSessions(50, { max, reserved: 3 })).toMatchObject(expected);
  });
});
