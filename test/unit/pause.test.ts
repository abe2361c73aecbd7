import { describe, expect, it } from 'vitest';
import { pauseOf } from '../../src/tasks/task.js';

describe('pauseOf', () => {
  it.each([
    ['before_demote', 'all'],
    ['before_promote', 'writes'],
    ['suspect', 'writes'],
    ['after_promote', 'writes'],
  ] as const)('with auto has for %s %s wait', (event, pause) => {
    expect(pauseOf({ event, pause: null }, 'auto')).toBe(pause);
  });

  it('takes what the task says first, then the setting', () => {
    expect(pauseOf({ event: 'before_demote', pause: 'none' }, 'auto')).toBe('none');
    expect(pauseOf({ event: 'suspect', pause: 'all' }, 'writes')).toBe('all');
    expect(pauseOf({ event: 'before_demote', pause: null }, 'writes')).toBe('writes');
    expect(pauseOf({ event: 'suspect', pause: null }, 'all')).toBe('all');
  });
});
