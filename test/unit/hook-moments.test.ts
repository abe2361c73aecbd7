import { describe, expect, it } from 'vitest';
import { type HookPlan, patroniPlan, repmgrPlan } from '../../src/commands/hook-moments.js';
import { isHook } from '../../src/commands/exit.js';
import { ConfigError } from '../../src/errors.js';

/** What a plan comes to, in a few words. */
function inWords(plan: HookPlan): string {
  if (plan.kind === 'nothing') return 'nothing';
  const { task, member } = plan;
  const words = [
    task && `${task.event} of ${task.node}`,
    task?.unless && `unless ${task.unless}`,
    task?.waitMs && `waits ${task.waitMs}`,
    task?.timeoutMs && `for ${task.timeoutMs}`,
    member && `member ${member.role} ${member.state}`,
  ];
  return words.filter(Boolean).join(', ');
}

const PRIMARY = ['master', 'primary', 'promoted'];
const REPLICA = ['replica', 'demoted', 'standby_leader'];
const PROMOTED = 'after_promote of own, member primary running';

function callback(moment: string, role: string): string {
  return inWords(patroniPlan([moment, moment, role, 'group-1']));
}

describe('what a moment of Patroni means', () => {
  it('is a hold before a primary stops, whose node is asked first', () => {
    expect(inWords(patroniPlan(['before_stop']))).toBe(
      'before_demote of own, unless not-primary, waits 5000',
    );
  });

  it('is a hold before the promotion', () => {
    expect(inWords(patroniPlan(['pre_promote']))).toBe('before_promote of own, waits 3000');
  });

  it.each(['on_role_change', 'on_start', 'on_restart'])('is read off the role in %s', (moment) => {
    for (const role of PRIMARY) expect(callback(moment, role)).toBe(PROMOTED);
    for (const role of REPLICA) expect(callback(moment, role)).toBe('member replica running');
    expect(callback(moment, 'uninitialized')).toBe('nothing');
  });

  it('is that the member has stopped, in on_stop', () => {
    for (const role of PRIMARY) expect(callback('on_stop', role)).toBe('member primary stopped');
    for (const role of REPLICA) expect(callback('on_stop', role)).toBe('member replica stopped');
    expect(callback('on_stop', 'uninitialized')).toBe('nothing');
  });

  it('does not depend on whether the configuration names the callback', () => {
    expect(inWords(patroniPlan(['on_role_change', 'master', 'group-1']))).toBe(PROMOTED);
  });

  it('does not depend on the scope, whatever that is called', () => {
    for (const scope of ['', 'primary', 'on_stop', "it's; $(x)"]) {
      expect(inWords(patroniPlan(['on_start', 'on_start', 'replica', scope]))).toBe(
        'member replica running',
      );
    }
  });

  it('is nothing for a reload', () => {
    expect(inWords(patroniPlan(['on_reload', 'on_reload', 'primary', 'group-1']))).toBe('nothing');
  });

  it.each([
    [],
    [''],
    ['nope'],
    ['BEFORE_STOP'],
    ['standby_promote'],
    ['on_stop'],
    ['on_stop', 'on_stop'],
    ['on_stop', 'on_start', 'primary'],
    ['on_role_change', 'on_role_change', 'Primary'],
    ['on_role_change', 'on_role_change', ''],
    ['on_role_change', 'on_role_change', "primary'; DROP TABLE mpp_tasks; --"],
    ['constructor', 'constructor', 'primary'],
  ])('is refused for %j', (...words) => {
    expect(() => patroniPlan(words)).toThrow(ConfigError);
  });
});

const FLAGS = { success: '1', suspectMs: 75_000 };

describe('what a moment of repmgr means', () => {
  it.each([
    ['service_stop_command', 'before_demote of own, unless not-primary, waits 5000'],
    ['promote_command', 'before_promote of own, waits 3000'],
  ])('is a hold in %s, which has no success', (moment, words) => {
    expect(inWords(repmgrPlan(moment, { ...FLAGS, success: undefined }))).toBe(words);
  });

  it.each([
    ['standby_promote', PROMOTED],
    ['standby_follow', 'member replica running'],
    ['standby_register', 'member replica running'],
    ['node_rejoin', 'member replica running'],
  ])('is a change in %s, unless it has failed', (event, words) => {
    expect(inWords(repmgrPlan(event, FLAGS))).toBe(words);
    expect(inWords(repmgrPlan(event, { ...FLAGS, success: '0' }))).toBe('nothing');
  });

  it.each([
    ['repmgrd_local_disconnect', 'suspect of own, unless answers, for 75000'],
    ['repmgrd_upstream_disconnect', 'suspect of registered, unless answers, for 75000'],
    ['repmgrd_local_reconnect', 'after_promote of own, unless not-primary'],
    ['repmgrd_upstream_reconnect', 'after_promote of registered, unless not-primary'],
  ])('is what the node says of itself in %s, with and without success', (event, words) => {
    for (const success of ['0', '1']) {
      expect(inWords(repmgrPlan(event, { ...FLAGS, success }))).toBe(words);
    }
  });

  it.each(['repmgrd_start', 'cluster_cleanup', 'standby_clone', 'toString', "x'; --"])(
    'is nothing in the event %s',
    (event) => {
      expect(inWords(repmgrPlan(event, FLAGS))).toBe('nothing');
    },
  );

  it('is refused without an event, and for an event without success', () => {
    expect(() => repmgrPlan(undefined, FLAGS)).toThrow(ConfigError);
    for (const success of [undefined, '', 't', '2', '%s']) {
      expect(() => repmgrPlan('standby_promote', { ...FLAGS, success })).toThrow(ConfigError);
    }
  });
});

describe('isHook', () => {
  it.each([
    ['hook patroni on_stop', true],
    ['--nope hook', true],
    ['notify suspect --hook', true],
    ['notify suspect --host hook', false],
    ['status', false],
    ['', false],
  ])('of "%s" is %s', (args, expected) => {
    expect(isHook(args.split(' '))).toBe(expected);
  });
});
