import { describe, expect, it } from 'vitest';
import type { Overview } from '../../src/controller/overview.js';
import type { PastSwitchover } from '../../src/controller/past-switchovers.js';
import type { NodeStatus } from '../../src/controller/status.js';
import { html } from '../../src/http/html.js';
import { barsOf } from '../../src/http/page-bars.js';
import { pageOf } from '../../src/http/page.js';

const NOW = new Date('2026-01-02T03:04:05Z');
const NOTHING: Overview = {
  status: {
    ...{ backlog: 0, oldestPending: null, holds: [], queue: [], nodes: [], maintenance: [] },
    controllers: [
      {
        ...{ controller: 'c', state: 'active', host: 'db1', pid: 1, version: '1', strategy: null },
        ...{ maxHolds: null, startedAt: '', heartbeatAge: 1 },
      },
    ],
  },
  ...{ failures: [], blockers: [], switchovers: [] },
};
const PAST: PastSwitchover = {
  ...{ groupid: 1, kind: 'switchover', from: 'a:1', to: 'b:1', ended: '2026-01-02 03:00:00' },
  ...{ id: 1, reportedAt: '', endedAt: '', statementsCancelled: 0, pause: 'all', source: 'client' },
  ...{ reportedBy: 'hook', controller: 'c', tasks: [1] },
  ...{ openingMs: 100, heldMs: 300, committingMs: 50, longestWaitMs: 280, sessionsWaiting: 3 },
  ...{ sessionsTerminated: 0, reason: null },
};

function page(overview: Overview | Error): string {
  return pageOf([{ database: undefined, overview }], NOW);
}

function node(groupid: number, more: Partial<NodeStatus> = {}): NodeStatus {
  return {
    ...{ groupid, nodeid: groupid, role: 'primary', nodename: `n${groupid}`, nodeport: 1 },
    ...{ cluster: 'default', active: true, metadataSynced: true, seen: [] },
    ...more,
  };
}

const STANDBY = {
  ...{ source: 'probe', role: 'secondary', state: 'running', age: 1 },
  ...{ isStale: false, isUp: true, problem: null },
};

describe('the page', () => {
  it('begins with one sentence: all is well, or the worst that is wrong', () => {
    expect(page(NOTHING)).toMatch(/<strong>OK<\/strong> All is well/);
    const none = { ...NOTHING, status: { ...NOTHING.status, controllers: [] } };
    expect(page(none)).toMatch(/<title>CRITICAL - .*<strong>CRITICAL<\/strong> no controller is/s);
    expect(page(new Error('it is away'))).toMatch(/CRITICAL<\/strong> the database .* it is away;/);
    expect(page(NOTHING)).toContain('2026-01-02 03:04:05 UTC');
  });

  it('escapes what others have named', () => {
    const reason = '<script>alert("x")</script>';
    const text = page({ ...NOTHING, switchovers: [{ ...PAST, reason, from: `'"&` }] });
    expect(text).not.toContain('alert("x")');
    expect(text).toContain('&#60;script&#62;alert(&#34;x&#34;)');
    expect(html`<a b="${'"'}">${[html`<i></i>`]}</a>`.text).toBe('<a b="&#34;"><i></i></a>');
  });

  it('has the groups that differ first, also among 64', () => {
    const nodes = Array.from({ length: 64 }, (_, index) =>
      node(index + 1, index === 40 ? { seen: [STANDBY] } : {}),
    );
    const text = page({ ...NOTHING, status: { ...NOTHING.status, nodes } });
    const order = [...text.matchAll(/>n(\d+):1</g)].map(([, id]) => Number(id));
    expect(order.slice(0, 3)).toEqual([41, 1, 2]);
    expect(order).toHaveLength(64);
    expect(text).toContain('▲ is a standby, says probe');
    expect(text).toMatch(/WARNING<\/strong> group 41/);
  });

  it('draws the steps of all switchovers on one scale, with their times in words', () => {
    const [one, other] = barsOf([PAST, { ...PAST, openingMs: null, heldMs: null }]);
    expect(one?.text).toContain('aria-label="opening 100 ms, held 250 ms, committing 50 ms"');
    const widths = (text = ''): number[] =>
      [...text.matchAll(/width="(\d+\.\d)"/g)].map(([, width]) => Number(width));
    expect(widths(one?.text)).toEqual([60, 150, 30]);
    expect(widths(other?.text)).toEqual([0, 0, 30]);
  });

  it('has a part for each of several databases, and the worst in its title', () => {
    const text = pageOf(
      [
        { database: 'a', overview: NOTHING },
        { database: 'b', overview: new Error('no') },
      ],
      NOW,
    );
    expect(text).toMatch(/Database a.*All is well.*Database b.*CRITICAL/s);
    expect(text).toContain('<title>CRITICAL');
  });
});
