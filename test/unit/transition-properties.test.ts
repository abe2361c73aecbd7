import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { HeldNode, Node, Transition } from '../../src/mpp/abstract.js';
import { parkedAddress, planTransition, type Report } from '../../src/mpp/citus/transition.js';
import { formatAddress, sameAddress, type Address } from '../../src/address.js';
import { isPrimaryOf, NodeTable } from '../kit/node-table.js';

const GROUP = 1;

const address = fc
  .tuple(fc.constantFrom('a', 'b', 'c', 'd', 'a-demoted', 'b-demoted'), fc.constantFrom(1, 2))
  .map(([host, port]): Address => ({ host, port }));
const addresses = (constraints: { minLength?: number; maxLength?: number }) =>
  fc.uniqueArray(address, { ...constraints, selector: formatAddress });

/** Whose a row is: the group's primary, its secondary, another group's, another cluster's. */
const owner = fc.constantFrom('primary', 'secondary', 'secondary', 'elsewhere', 'foreign');

/** Any table with at most one primary of the group, and nodeids in any order. */
const table: fc.Arbitrary<Node[]> = fc
  .record({
    places: addresses({ maxLength: 7 }),
    owners: fc.array(owner, { minLength: 7, maxLength: 7 }),
    nodeids: fc.shuffledSubarray([1, 2, 3, 4, 5, 6, 7], { minLength: 7 }),
  })
  .map(({ places, owners, nodeids }) => {
    const first = owners.indexOf('primary');
    return places.map((place, index): Node => {
      const kind = owners[index] === 'primary' && index !== first ? 'secondary' : owners[index];
      return {
        nodeid: nodeids[index] ?? 0,
        groupid: kind === 'elsewhere' ? 2 : GROUP,
        address: place,
        role: kind === 'secondary' ? 'secondary' : 'primary',
        isInCluster: kind !== 'foreign',
      };
    });
  });

/** after_promote of any node, with any others or none named. The table's trigger refuses the rest. */
const wish: fc.Arbitrary<Report> = fc
  .record({ to: address, others: fc.option(addresses({ maxLength: 4 }), { nil: null }) })
  .map(({ to, others }) => ({
    event: 'after_promote',
    groupid: GROUP,
    address: to,
    secondaries: others?.filter((other) => !sameAddress(other, to)) ?? null,
  }));

function plan(rows: NodeTable, report: Report, held: HeldNode | null = null): Transition {
  const named = [report.address, ...(report.secondaries ?? [])];
  return planTransition(report, rows.visible(report.groupid, named), held);
}

/** Applies a change and its follow-up, each as a task of its own plans it. @returns the first plan. */
function carryOut(rows: NodeTable, report: Report): Transition {
  const first = plan(rows, report);
  if (first.kind !== 'change') return first;
  first.steps.forEach((step) => rows.apply(step));
  if (!first.followUp) return first;
  expect(first.steps.every((step) => step.op !== 'remove')).toBe(true);
  const second = plan(rows, report);
  if (second.kind === 'fail') return second;
  expect(second).toMatchObject({ kind: 'change', followUp: false });
  if (second.kind === 'change') second.steps.forEach((step) => rows.apply(step));
  return first;
}

const isStranger = (row: Node) => !(row.isInCluster && row.groupid === GROUP);
const placesOf = (rows: readonly Node[]) => rows.map((row) => formatAddress(row.address)).sort();

/** Who a group has after a move: the named ones, or those it had with the old primary swapped in. */
function expectedSecondaries(before: readonly Node[], report: Report): string[] {
  if (report.secondaries !== null) return report.secondaries.map(formatAddress).sort();
  const primary = before.find((row) => isPrimaryOf(row, GROUP));
  return placesOf(
    before
      .filter((row) => !isStranger(row) && row.role === 'secondary')
      .map((row) =>
        primary && sameAddress(row.address, report.address)
          ? { ...row, address: primary.address }
          : row,
      ),
  );
}

function expectWish(rows: NodeTable, before: readonly Node[], report: Report): void {
  const group = rows.rows.filter((row) => !isStranger(row));
  expect(placesOf(group.filter(({ role }) => role === 'primary'))).toEqual([
    formatAddress(report.address),
  ]);
  expect(placesOf(group.filter(({ role }) => role === 'secondary'))).toEqual(
    expectedSecondaries(before, report),
  );
  const nodeid = before.find((row) => isPrimaryOf(row, GROUP))?.nodeid;
  if (nodeid !== undefined) {
    expect(group.find(({ role }) => role === 'primary')?.nodeid).toBe(nodeid);
  }
}

describe('after_promote, from any rows to any wish', () => {
  it('gives exactly the wish, touches no other row, and finds nothing to do the second time', () => {
    fc.assert(
      fc.property(table, wish, (before, report) => {
        const rows = new NodeTable(before);
        const outcome = carryOut(rows, report);

        expect(rows.rows.filter(isStranger)).toEqual(before.filter(isStranger));
        const isTaken = (address: Address) =>
          before.some((row) => isStranger(row) && sameAddress(row.address, address));
        const orphan =
          !before.some((row) => isPrimaryOf(row, GROUP)) &&
          before.some((row) => !isStranger(row) && sameAddress(row.address, report.address));
        if (isTaken(report.address) || orphan) {
          expect(outcome.kind).toBe('fail');
          expect(rows.rows).toEqual(before);
          return;
        }
        if (report.secondaries?.some(isTaken)) {
          // The primary is moved all the same; what is wrong is said after it.
          expect(outcome.kind).toBe('fail');
          expect(rows.rows.filter((row) => isPrimaryOf(row, GROUP))).toMatchObject([
            { address: report.address },
          ]);
          return;
        }
        expectWish(rows, before, report);
        expect(plan(rows, report).kind).toBe('nothing');
      }),
      { numRuns: 2_000 },
    );
  });

  it('moves the primary first: what is added or removed comes in the follow-up', () => {
    fc.assert(
      fc.property(table, wish, (before, report) => {
        const first = plan(new NodeTable(before), report);
        if (first.kind !== 'change' || !first.followUp) return;
        for (const step of first.steps) {
          expect(
            step.op === 'update' || ('node' in step && sameAddress(step.node, report.address)),
          ).toBe(true);
        }
      }),
    );
  });

  it('keeps as many nodeids of secondaries as there are nodes to keep them for', () => {
    fc.assert(
      fc.property(table, wish, (before, report) => {
        const rows = new NodeTable(before);
        const { kind } = carryOut(rows, report);
        const primary = before.find((row) => isPrimaryOf(row, GROUP));
        if (kind !== 'change' || !primary) return;
        const nodeids = before.filter((row) => !isStranger(row)).map(({ nodeid }) => nodeid);
        const wanted = expectedSecondaries(before, report).length + 1;
        const kept = rows.rows.filter((row) => nodeids.includes(row.nodeid) && !isStranger(row));
        expect(kept).toHaveLength(Math.min(nodeids.length, wanted));
      }),
    );
  });
});

describe('a hold that has parked its row', () => {
  /** As the strategy demoted-row does it: the row is parked, then each target is written down. */
  function hold(rows: NodeTable, primary: Node, targets: readonly Address[]): HeldNode {
    const held = { nodeid: primary.nodeid, original: primary.address };
    const to = parkedAddress(primary, rows.visible(GROUP, [primary.address]));
    rows.apply({ op: 'update', nodeid: primary.nodeid, to });
    for (const target of targets) {
      const report = { event: 'after_promote', groupid: GROUP, address: target } as const;
      const next = plan(rows, { ...report, secondaries: null }, { ...held, target });
      if (next.kind === 'change') next.steps.forEach((step) => rows.apply(step));
    }
    return { ...held, target: targets.at(-1) ?? null };
  }

  it('commits to exactly the wish, whatever it was re-targeted to meanwhile', () => {
    const targets = fc.array(address, { maxLength: 3 });
    fc.assert(
      fc.property(table, targets, wish, (before, all, report) => {
        const primary = before.find((row) => isPrimaryOf(row, GROUP));
        fc.pre(primary !== undefined);
        const strange = before.filter(isStranger);
        const free = (to: Address) => !strange.some((row) => sameAddress(row.address, to));
        fc.pre([report.address, ...(report.secondaries ?? [])].every(free));

        const rows = new NodeTable(before);
        const held = hold(rows, primary, all.filter(free));
        const commit = plan(rows, report, held);
        expect(commit.kind).toBe('change');
        if (commit.kind !== 'change') return;
        // Without a step the pause is taken back, and with it all that the hold has written.
        const after = commit.steps.length === 0 ? new NodeTable(before) : rows;
        commit.steps.forEach((step) => after.apply(step));
        expect(carryOut(after, report).kind).toBe(commit.followUp ? 'change' : 'nothing');
        expectWish(after, before, report);
        expect(after.rows.filter(isStranger)).toEqual(strange);
      }),
      { numRuns: 2_000 },
    );
  });

  it('knows its own report: the events of a switchover in order', () => {
    fc.assert(
      fc.property(table, address, (before, to) => {
        const primary = before.find((row) => isPrimaryOf(row, GROUP));
        fc.pre(primary !== undefined);
        const about = { groupid: GROUP, secondaries: null };
        const rows = new NodeTable(before);
        const opened = plan(rows, { ...about, event: 'before_demote', address: primary.address });
        expect(opened).toEqual({ kind: 'hold', node: primary, target: null });
        const held = { nodeid: primary.nodeid, original: primary.address, target: null };
        const aimed = plan(rows, { ...about, event: 'before_promote', address: to }, held);
        const taken = before.some((row) => isStranger(row) && sameAddress(row.address, to));
        expect(aimed).toMatchObject(taken ? { kind: 'discard' } : { kind: 'hold', target: to });
      }),
    );
  });
});
