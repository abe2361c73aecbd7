/**
 * Lines up rows under their titles, two blanks between the columns.
 *
 * @param rows cells of one row each; null shows as `-`
 */
export function formatTable(
  titles: readonly string[],
  rows: readonly (readonly (string | number | null)[])[],
  indent = '  ',
): string {
  const cells = rows.map((row) => row.map((cell) => (cell === null ? '-' : String(cell))));
  const all = [[...titles], ...cells];
  const widths = titles.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all
    .map((row) => {
      const padded = row.map((cell, column) => cell.padEnd(widths[column] ?? 0));
      return `${indent}${padded.join('  ')}`.trimEnd();
    })
    .join('\n');
}
