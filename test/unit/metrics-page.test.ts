import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type MetricDefinition, METRICS } from '../../src/http/metric-table.js';
import { combinations, Metrics } from '../../src/http/metrics.js';
import { purposeOf } from '../../src/http/observed-database.js';
import { packageRoot } from '../../src/package-root.js';
import { samples } from '../kit/http.js';

const TABLE = Object.entries<MetricDefinition>(METRICS);

describe('the page of metrics', () => {
  it('has each metric of the registry as it is, in the same order', async () => {
    const page = await readFile(join(packageRoot(), 'docs', 'metrics.md'), 'utf8');
    const rows = [...page.matchAll(/^\| `(mpp_\w+)` .*$/gm)].map(([row]) =>
      row
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
    expect(rows).toEqual(
      TABLE.map(([name, { type, labels, unit, help }]) => [
        `\`${name}\``,
        type,
        Object.keys(labels)
          .map((label) => `\`${label}\``)
          .join(', '),
        unit,
        help.replace(/\.$/, ''),
      ]),
    );
  });
});

describe('the exposition', () => {
  it('begins each set of known labels with 0, and has no state of the cluster before it is read', async () => {
    const seen = samples(await new Metrics(undefined).text());
    for (const [name, { type, labels, from }] of TABLE) {
      const own = [...seen].filter(([sample]) => sample.replace(/\{.*/, '') === name);
      if (from === 'cluster' || from === 'once') expect(own, name).toEqual([]);
      if (from !== 'controller' || type === 'histogram') continue;
      expect(own, name).toHaveLength(combinations(labels).length);
      expect(own.every(([, value]) => value === 0)).toBe(true);
    }
    expect(seen.get('mpp_switchover_duration_seconds_count{kind="failover",step="total"}')).toBe(0);
  });

  it('has the label database with several databases alone', async () => {
    const metrics = new Metrics(['a', 'b']);
    metrics.of('b').add('mpp_listen_reconnects_total', {});
    metrics.of('b').set('mpp_group_held', { groupid: 1 }, 1);
    const seen = samples(await metrics.text());
    expect(seen.get('mpp_listen_reconnects_total{database="a"}')).toBe(0);
    expect(seen.get('mpp_listen_reconnects_total{database="b"}')).toBe(1);
    expect(seen.get('mpp_group_held{groupid="1",database="b"}')).toBe(1);
    expect([...seen.keys()].find((name) => name.startsWith('mpp_build_info'))).not.toContain(
      'database',
    );
    metrics.forgetCluster();
    expect(await metrics.text()).not.toContain('mpp_group_held{');
  });

  it('keeps to the rules for names and labels', () => {
    for (const [name, { type, labels, unit }] of TABLE) {
      expect(name.endsWith('_total'), name).toBe(type === 'counter');
      if (unit === 'seconds' || unit === 'unix time') expect(name).toMatch(/_seconds$/);
      if (type === 'histogram') expect(Object.keys(labels)).not.toContain('groupid');
      for (const label of ['cluster', 'instance', 'job', 'user', 'query', 'host', 'task']) {
        expect(Object.keys(labels)).not.toContain(label);
      }
    }
  });
});

it.each([
  ['mpp-controller control', 'control'],
  ['mpp-controller group', 'group'],
  ['mpp-controller group 7', 'group'],
  ['mpp-controller pause of group 7', 'pause'],
  ['mpp-controller shared locks', 'shared locks'],
  ['mpp-controller of a client', 'other'],
])('counts the session %s as %s', (application, purpose) => {
  expect(purposeOf(application)).toBe(purpose);
});
