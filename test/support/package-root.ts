import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/**
 * The folder of this checkout's package.json. Support code runs from test/ under vitest and from
 * build/ for the demo, so paths to files that tsc does not copy start here.
 */
export function packageRoot(): string {
  let folder = import.meta.dirname;
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error(`no package.json above ${import.meta.dirname}`);
    folder = parent;
  }
  return folder;
}
