import { measureStatements } from './measure.js';
import { measureUnderWay } from './measure-under-way.js';
import { STATEMENT_KINDS, type StatementKind } from './kinds.js';
import type { Stage } from './stage.js';
import { cellOf, COLUMNS, underWayCellOf, type Row } from './table.js';
import { UNDER_WAY_KINDS } from './under-way.js';

export interface RunOptions {
  /** Only what the stand-in for Citus knows. */
  readonly standin: boolean;
  /** Told of each measured cell. */
  readonly progress?: (text: string) => void;
}

/** Measures the first table: what is sent while a group is held. */
export async function statementRows(stage: Stage, options: RunOptions): Promise<Row[]> {
  const kinds = STATEMENT_KINDS.filter(({ standin }) => standin === true || !options.standin);
  const rows = new Map(kinds.map(({ name }) => [name, [] as string[]]));
  for (const { pause, entry } of COLUMNS) {
    for (const batch of batchesOf(kinds)) {
      const outcomes = await measureStatements(stage, batch, pause, entry);
      for (const [index, { name, racesSync }] of batch.entries()) {
        const outcome = outcomes[index];
        const isRace = pause === 'writes' && entry === 'coordinator' && racesSync === true;
        const cell = outcome ? cellOf(outcome, isRace) : '';
        rows.get(name)?.push(cell);
        options.progress?.(`${pause}, ${entry}: ${name}: ${cell}`);
      }
    }
  }
  return kinds.map(({ name }) => ({ name, cells: rows.get(name) ?? [] }));
}

/** Measures the second table: what was under way before. */
export async function underWayRows(stage: Stage, options: RunOptions): Promise<Row[]> {
  const kinds = UNDER_WAY_KINDS.filter(({ standin }) => standin === true || !options.standin);
  const rows: Row[] = [];
  for (const kind of kinds) {
    const cells: string[] = [];
    for (const { pause, entry } of COLUMNS) {
      const cell = underWayCellOf(await measureUnderWay(stage, kind, pause, entry));
      cells.push(cell);
      options.progress?.(`${pause}, ${entry}: ${kind.name}: ${cell}`);
    }
    rows.push({ name: kind.name, cells });
  }
  return rows;
}

/** All that do not make others wait share a switchover. */
function batchesOf(kinds: readonly StatementKind[]): StatementKind[][] {
  const shared = kinds.filter(({ alone }) => !alone);
  return [shared, ...kinds.filter(({ alone }) => alone).map((kind) => [kind])];
}
