import { describe, expect, it } from 'vitest';
import { judge, type SiblingSight } from '../../src/siblings/waiting.js';

const SIGHT: SiblingSight = {
  held: false,
  status: 'pending',
  reason: null,
  coming: false,
  led: true,
};

function judgeSight(sight: Partial<SiblingSight>, unledMs = 0): string | null | undefined {
  return judge({ told: true, failure: undefined, sight: { ...SIGHT, ...sight }, unledMs });
}

describe('whether a report waits for a sibling', () => {
  it.each(['pending', 'claimed', 'holding'])(
    'yes, while its task is %s and nobody holds',
    (status) => {
      expect(judgeSight({ status, led: false }, 1_999)).toBeUndefined();
      expect(judgeSight({ status }, 3_600_000)).toBeUndefined();
      expect(judgeSight({ status, led: false }, 2_001)).toBe('no controller is active there');
    },
  );

  it('no, when its traffic waits, for whatever report', () => {
    expect(judgeSight({ held: true, status: null })).toBeNull();
    expect(judgeSight({ held: true, status: 'claimed', reason: 'tried again' })).toBeNull();
    expect(judgeSight({ held: true, status: 'holding', reason: 'writes only' })).toBe(
      'writes only',
    );
  });

  it('no, when its task has ended', () => {
    expect(judgeSight({ status: 'failed', reason: 'no locks' })).toBe('no locks');
    expect(judgeSight({ status: 'done' })).toBe('its task is done');
    expect(judgeSight({ status: null })).toBe('a newer report was made there');
  });

  it('as long as a newer report there is about to make it wait', () => {
    expect(judgeSight({ status: null, coming: true })).toBeUndefined();
    expect(judgeSight({ status: null, coming: true, held: true })).toBeNull();
  });

  it('until it has been told, unless it cannot be', () => {
    const known = { told: false, sight: undefined, unledMs: 0 };
    expect(judge({ ...known, failure: undefined })).toBeUndefined();
    expect(judge({ ...known, failure: 'refused' })).toBe('refused');
  });
});
