import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';
import { Harness } from '../kit/harness.js';
import { STATEMENT_KINDS } from '../kit/statements/kinds.js';
import { statementRows, underWayRows } from '../kit/statements/run.js';
import { Stage } from '../kit/statements/stage.js';
import { rowsOf, type Row } from '../kit/statements/table.js';
import { UNDER_WAY_KINDS } from '../kit/statements/under-way.js';

/** Some two hundred switchovers on real Citus. */
const LONG = 900_000;

const KINDS = [...STATEMENT_KINDS, ...UNDER_WAY_KINDS];

describe('what docs/locking.md says of statements beside a hold', () => {
  let h: Harness;
  let stage: Stage;
  let page: Map<string, readonly string[]>;
  const { hasCitus } = inject('template').binaries;

  beforeAll(async () => {
    page = rowsOf(await readFile(join(packageRoot(), 'docs', 'locking.md'), 'utf8'));
    h = await Harness.start({ template: inject('template'), groups: 2 });
    stage = await Stage.prepare(h);
  });
  afterAll(async () => h.stop());

  function expectOnPage(rows: readonly Row[]): void {
    expect(rows.map(({ name, cells }) => [name, cells])).toEqual(
      rows.map(({ name }) => [name, page.get(name)]),
    );
  }

  it('has a row for each kind, and no other', () => {
    expect([...page.keys()]).toEqual(KINDS.map(({ name }) => name));
  });

  it(
    'is what happens to those that are sent while the group is held',
    async () => expectOnPage(await statementRows(stage, { standin: !hasCitus })),
    LONG,
  );

  it(
    'is what happens to those that were under way before',
    async () => expectOnPage(await underWayRows(stage, { standin: !hasCitus })),
    LONG,
  );

  it('is measured for every row', ({ skip }) => {
    const known = KINDS.filter(({ standin }) => standin === true).length;
    skip(
      !hasCitus,
      `the stand-in for Citus knows ${known} of ${KINDS.length} kinds of statement; npm run test:citus runs all`,
    );
  });
});
