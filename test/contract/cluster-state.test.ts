import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { loadSettings } from '../../src/config/settings.js';
import { clusterStateStatement, readClusterState } from '../../src/http/cluster-state.js';
import { createMPP } from '../../src/mpp/index.js';
import type { Queryable } from '../../src/postgres/queries.js';
import { Harness } from '../kit/harness.js';

const { nodesQuery } = createMPP(loadSettings({}));
const OPTIONS = { ttlMs: 30_000, sources: ['table', 'probe'], nodesQuery };
const ROWS = 100_000;

describe('the statement for the state of the cluster', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 2, standbys: false });
    await h.db.query('SET session_replication_role = replica');
    await h.db.query(FILL, [ROWS]);
    await h.db.query('SET session_replication_role = origin; ANALYZE');
    await h.db.query('GRANT mpp_controller TO CURRENT_USER; SET ROLE mpp_controller');
  });
  afterAll(async () => h.stop());

  /** Sessions of the controller replace `@mpp.` themselves. */
  const plain = {
    query: (query: { readonly text: string; readonly values: unknown[] }) =>
      h.db.query(query.text.replaceAll('@mpp.', 'public.'), query.values),
  };
  const read = (since: string | null = null) =>
    readClusterState(plain as unknown as Queryable, { ...OPTIONS, since });

  it('may be run by the role of a controller', async () => {
    const { groups, members, pending, holds } = await read();
    expect(groups.map(({ groupid }) => groupid).sort()).toEqual([0, 1, 2]);
    expect({ members, pending, holds }).toEqual({ members: [], pending: {}, holds: [] });
  });

  it('reads a small part of a long history, also of groups without a report', async () => {
    const { rows } = await h.db.query<{ 'QUERY PLAN': [{ Plan: Plan }] }>(
      `EXPLAIN (ANALYZE, FORMAT JSON) ${clusterStateStatement(nodesQuery).replaceAll('@mpp.', 'public.')}`,
      [new Date().toISOString(), 30_000, OPTIONS.sources, 2_000, 3_600_000],
    );
    const plan = rows[0]?.['QUERY PLAN'][0].Plan;
    if (plan === undefined) throw new Error('EXPLAIN returns a plan');
    const scans = scansOf(plan, 'mpp_tasks');
    expect(scans.length).toBeGreaterThan(2);
    for (const scan of scans) {
      const passed = (scan['Rows Removed by Filter'] ?? 0) + scan['Actual Rows'];
      expect(passed * scan['Actual Loops'], JSON.stringify(scan)).toBeLessThan(1_000);
    }
  });

  it('counts each end once, however often it is read', async () => {
    const all = count((await read('-infinity')).ended);
    // One row a second, of the last hour, without the last two seconds.
    expect(all).toBeGreaterThan(3_000);
    expect(all).toBeLessThanOrEqual(3_600);
    const first = await read();
    const next = await read(first.endedUntil);
    expect(count(next.ended)).toBeLessThan(60);
    expect(Date.parse(next.endedUntil)).toBeGreaterThanOrEqual(Date.parse(first.endedUntil));
  });
});

interface Plan {
  readonly 'Relation Name'?: string;
  readonly 'Rows Removed by Filter'?: number;
  readonly 'Actual Rows': number;
  readonly 'Actual Loops': number;
  readonly Plans?: readonly Plan[];
}

function scansOf(plan: Plan, table: string): Plan[] {
  const { Plans = [], ...own } = plan;
  const below = Plans.flatMap((one) => scansOf(one, table));
  return own['Relation Name'] === table ? [own, ...below] : below;
}

function count(ended: readonly { readonly count: number }[]): number {
  return ended.reduce((sum, one) => sum + one.count, 0);
}

/** Group 2 has no report of a promotion; one of group 1 in six was discarded. */
const FILL = `
  INSERT INTO mpp_tasks (event, groupid, nodename, status, timeout, cooldown, created_at, finished_at)
  SELECT CASE WHEN i % 2 = 0 THEN 'before_demote' ELSE 'after_promote' END, 1, 'n',
         CASE WHEN i % 6 = 1 THEN 'discarded' ELSE 'done' END, '30 s', '10 s',
         clock_timestamp() - i * interval '1 s', clock_timestamp() - i * interval '1 s'
  FROM generate_series(1, $1::integer) AS i`;
