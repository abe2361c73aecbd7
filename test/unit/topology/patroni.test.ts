import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot } from '../../../src/package-root.js';
import { readAnswer } from '../../../src/topology/patroni.js';

const FOLDER = join(packageRoot(), 'test', 'kit', 'patroni', 'recorded');

function read(answer: unknown) {
  const { reports, complete } = readAnswer(answer, 1, 0);
  return {
    complete,
    members: reports.map(({ address, role, state, timeline, noloadbalance }) => [
      `${address.host}:${address.port}`,
      role,
      state,
      timeline,
      noloadbalance,
    ]),
  };
}

const member = (values: object) => ({ members: [{ host: 'h', port: 1, ...values }] });

describe('what Patroni answers', () => {
  it.each(readdirSync(FOLDER))('recorded: %s', (name) => {
    const { answer, expected } = JSON.parse(readFileSync(join(FOLDER, name), 'utf8')) as {
      answer: unknown;
      expected: unknown;
    };
    expect(read(answer)).toEqual(expected);
  });

  it.each([
    ['leader', 'primary'],
    ['master', 'primary'],
    ['standby_leader', 'secondary'],
    ['replica', 'secondary'],
    ['sync_standby', 'secondary'],
    ['quorum_standby', 'secondary'],
    ['something new', 'secondary'],
  ])('role %s', (word, role) => {
    expect(read(member({ role: word })).members[0]?.[1]).toBe(role);
  });

  it.each([
    ['running', 'running'],
    ['streaming', 'streaming'],
    ['in archive recovery', 'in archive recovery'],
    ['start failed', 'start failed'],
    ['removed', 'unknown'],
    ['', 'unknown'],
    [undefined, 'unknown'],
    ['x'.repeat(100), 'unknown'],
  ])('state %s', (word, state) => {
    expect(read(member({ role: 'replica', state: word })).members[0]?.[2]).toBe(state);
  });

  it.each([
    [{ noloadbalance: true }, true],
    [{ noloadbalance: 'true' }, true],
    [{ noloadbalance: false }, false],
    [{ nofailover: true }, false],
    [{}, false],
    [undefined, false],
  ])('tags %j', (tags, noloadbalance) => {
    expect(read(member({ role: 'replica', tags })).members[0]?.[4]).toBe(noloadbalance);
  });

  it.each([
    ['no host yet', { role: 'replica', host: undefined }],
    ['a host that the table refuses', { role: 'replica', host: 'two words' }],
    ['a port that is none', { role: 'replica', port: 70_000 }],
  ])('%s: that member is left out, and nobody counts as removed', (_, values) => {
    expect(read(member(values))).toEqual({ complete: false, members: [] });
  });

  it('an empty cluster tells nothing', () => {
    expect(read({ members: [] })).toEqual({ complete: false, members: [] });
  });

  it('a timeline that is none', () => {
    expect(read(member({ role: 'leader', timeline: 0 })).members[0]?.[3]).toBeNull();
  });

  it.each([[{}], [[]], ['text'], [{ members: 1 }], [{ members: [{ role: 1 }] }], [null]])(
    '%j is no answer',
    (answer) => {
      expect(() => readAnswer(answer, 1, 0)).toThrow();
    },
  );
});
