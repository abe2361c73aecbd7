import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatDuration, parseDuration } from '../../src/config/formats.js';
import { ConfigError } from '../../src/errors.js';

describe('parseDuration', () => {
  it.each([
    ['500ms', 500],
    ['10s', 10_000],
    ['5min', 300_000],
    ['2h', 7_200_000],
    ['30d', 2_592_000_000],
    ['0s', 0],
    [' 10 s ', 10_000],
  ])('reads %j as %d ms', (text, milliseconds) => {
    expect(parseDuration(text)).toBe(milliseconds);
  });

  it('refuses a bare number, saying that its unit is missing', () => {
    expect(() => parseDuration('10')).toThrow(
      new ConfigError(
        '"10" has no unit; give a whole number with its unit, such as 500ms, 10s, 5min, 2h or 30d',
      ),
    );
  });

  it.each(['', 's', '-1s', '1.5s', '5m', '10S', '10s 5ms', '1e3ms', '99999999999999999d'])(
    'refuses %j',
    (text) => {
      expect(() => parseDuration(text)).toThrow(ConfigError);
    },
  );
});

describe('formatDuration', () => {
  it.each([
    [0, '0ms'],
    [1_500, '1500ms'],
    [90_000, '90s'],
    [3_600_000, '1h'],
    [2_592_000_000, '30d'],
  ])('writes %d ms as %s', (milliseconds, text) => {
    expect(formatDuration(milliseconds)).toBe(text);
  });

  it('writes what parseDuration reads back', () => {
    fc.assert(
      fc.property(fc.nat({ max: 10 ** 12 }), (milliseconds) => {
        expect(parseDuration(formatDuration(milliseconds))).toBe(milliseconds);
      }),
    );
  });
});
