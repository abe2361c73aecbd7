import { readdir, readFile } from 'node:fs/promises';
import { dirname, join, normalize } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';

type Graph = ReadonlyMap<string, readonly string[]>;

describe('the imports of src', () => {
  it('form no circle, types included', async () => {
    const graph = await readImports(join(packageRoot(), 'src'));
    expect(graph.size).toBeGreaterThan(50);
    expect(findCircle(graph)).toBeUndefined();
  });

  it('would be seen to form one', () => {
    const graph = new Map([
      ['a', ['b', 'c']],
      ['b', []],
      ['c', ['d']],
      ['d', ['a']],
    ]);
    expect(findCircle(graph)).toEqual(['a', 'c', 'd', 'a']);
  });
});

async function readImports(folder: string): Promise<Graph> {
  const names = (await readdir(folder, { recursive: true })).filter((name) => name.endsWith('.ts'));
  const read = names.map(async (name) => {
    const text = await readFile(join(folder, name), 'utf8');
    const specifiers = [...text.matchAll(/from '(\.[^']+)\.js'/g)].map(([, path = '']) => path);
    return [name, specifiers.map((path) => `${normalize(join(dirname(name), path))}.ts`)] as const;
  });
  return new Map(await Promise.all(read));
}

/** @returns the files of a circle, the first one again at the end; undefined when there is none. */
function findCircle(graph: Graph): string[] | undefined {
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): string[] | undefined => {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file];
    if (done.has(file)) return undefined;
    for (const imported of graph.get(file) ?? []) {
      const circle = visit(imported, [...path, file]);
      if (circle) return circle;
    }
    done.add(file);
    return undefined;
  };
  for (const file of graph.keys()) {
    const circle = visit(file, []);
    if (circle) return circle;
  }
  return undefined;
}
