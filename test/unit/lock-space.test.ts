import { describe, expect, it } from 'vitest';
import { LockSpace } from '../../src/mpp/citus/pause/nodes.js';

describe('LockSpace', () => {
  it('tells each what all the others have claimed', () => {
    const space = new LockSpace();
    const [one, other, third] = [{}, {}, {}];
    space.claim(one, 20);
    space.claim(other, 30);
    expect(space.claimedBeside(one)).toBe(30);
    expect(space.claimedBeside(third)).toBe(50);
  });

  it('counts what was claimed last, and nothing once it is given back', () => {
    const space = new LockSpace();
    const [one, other] = [{}, {}];
    space.claim(one, 20);
    space.claim(one, 5);
    expect(space.claimedBeside(other)).toBe(5);
    space.release(one);
    space.release(one);
    expect(space.claimedBeside(other)).toBe(0);
  });
});
