import { describe, expect, it } from 'vitest';
import { judge, type CopyState } from '../../src/databases/waiting.js';

const COPY: CopyState = {
  held: false,
  status: 'pending',
  reason: null,
  coming: false,
  led: true,
};

function judgeCopy(copy: Partial<CopyState>, unledMs = 0): string | null | undefined {
  return judge({ forwarded: true, failure: undefined, copy: { ...COPY, ...copy }, unledMs });
}

describe('whether a report waits for another database', () => {
  it.each(['pending', 'claimed', 'holding'])(
    'yes, while its task is %s and no group is held',
    (status) => {
      expect(judgeCopy({ status, led: false }, 1_999)).toBeUndefined();
      expect(judgeCopy({ status }, 3_600_000)).toBeUndefined();
      expect(judgeCopy({ status, led: false }, 2_001)).toBe('no controller is active there');
    },
  );

  it('no, when its traffic waits, for whatever report', () => {
    expect(judgeCopy({ held: true, status: null })).toBeNull();
    expect(judgeCopy({ held: true, status: 'claimed', reason: 'tried again' })).toBeNull();
    expect(judgeCopy({ held: true, status: 'holding', reason: 'writes only' })).toBe('writes only');
  });

  it('no, when its task has ended', () => {
    expect(judgeCopy({ status: 'failed', reason: 'no locks' })).toBe('no locks');
    expect(judgeCopy({ status: 'done' })).toBe('its task is done');
    expect(judgeCopy({ status: null })).toBe('a newer report was made there');
  });

  it('as long as a newer report there is about to make it wait', () => {
    expect(judgeCopy({ status: null, coming: true })).toBeUndefined();
    expect(judgeCopy({ status: null, coming: true, held: true })).toBeNull();
  });

  it('until it has been forwarded, unless it cannot be', () => {
    const known = { forwarded: false, copy: undefined, unledMs: 0 };
    expect(judge({ ...known, failure: undefined })).toBeUndefined();
    expect(judge({ ...known, failure: 'refused' })).toBe('refused');
  });
});
