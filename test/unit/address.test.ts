import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatAddress, parseAddress, sameAddress } from '../../src/address.js';

describe('addresses', () => {
  it.each([
    ['worker-1:5432', { host: 'worker-1', port: 5432 }],
    ['10.0.0.1:1', { host: '10.0.0.1', port: 1 }],
    ['[::1]:5432', { host: '::1', port: 5432 }],
    ['[fe80::1%eth0]:65535', { host: 'fe80::1%eth0', port: 65_535 }],
  ])('reads and writes %s', (text, address) => {
    expect(parseAddress(text)).toEqual(address);
    expect(formatAddress(address)).toBe(text);
  });

  it('reads what it writes', () => {
    const host = fc.oneof(fc.domain(), fc.ipV4(), fc.ipV6());
    fc.assert(
      fc.property(host, fc.integer({ min: 1, max: 65_535 }), (host, port) => {
        expect(parseAddress(formatAddress({ host, port }))).toEqual({ host, port });
      }),
    );
  });

  it('are the same by host and port', () => {
    const a = { host: 'a', port: 1 };
    expect(sameAddress(a, { host: 'a', port: 1 })).toBe(true);
    expect(sameAddress(a, { host: 'b', port: 1 })).toBe(false);
    expect(sameAddress(a, { host: 'a', port: 2 })).toBe(false);
  });
});
