import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';

it('the page of errors has each code that the source gives, and no other', async () => {
  const page = await readFile(join(packageRoot(), 'docs', 'errors.md'), 'utf8');
  const documented = [...page.matchAll(/^\| `([A-Z_]+)` /gm)].map(([, code]) => code);
  expect(documented.sort()).toEqual((await codesOf(join(packageRoot(), 'src'))).sort());
});

/** What the constructors of the error classes get as their code. */
async function codesOf(folder: string): Promise<string[]> {
  const names = (await readdir(folder, { recursive: true })).filter((name) => name.endsWith('.ts'));
  const texts = await Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')));
  const given =
    /(?:new (?:DatabaseState|Mpp)Error|\bsuper)\(\s*(?:[^'(),]*\? )?'([A-Z_]+)'(?: : '([A-Z_]+)')?/g;
  const codes = texts.flatMap((text) =>
    [...text.matchAll(given)].flatMap(([, ...found]) => found.filter(Boolean)),
  );
  return [...new Set(codes)];
}
