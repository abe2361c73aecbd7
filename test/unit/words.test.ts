import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { findWords, refusedWords, testNames, type RefusedWord } from '../kit/words.js';

const ROOT = join(import.meta.dirname, '..', '..');

describe('the words that the glossary refuses', () => {
  it('are found in sentences, in names, and in their forms', () => {
    const text = 'a door\nclass DoorList\nmpp_doors\nindoors\nadored';
    expect(findWords('f', text, ['door']).map(({ line }) => line)).toEqual([1, 2, 3]);
    expect(findWords('f', 'isInTheWay', ['in the way'])).toHaveLength(1);
  });

  it('are those of the last column', () => {
    const glossary =
      '| term | meaning | not |\n| --- | --- | --- |\n| a | b | c, d e |\n| f | g |  |';
    expect(refusedWords(glossary)).toEqual(['c', 'd e']);
  });

  it('stand nowhere in src, migrations, bench, names of tests and documents', async () => {
    const words = refusedWords(await readFile(join(ROOT, 'docs/glossary.md'), 'utf8'));
    expect(words.length).toBeGreaterThan(10);
    const found = [
      ...(await search('src', /\.ts$/, words)),
      ...(await search('migrations', /\.sql$/, words)),
      ...(await search('bench', /\.(ts|md)$/, words)),
      ...(await search('test', /\.test\.ts$/, words, testNames)),
      ...(await search('docs', /(?<!glossary)\.md$/, words)),
      ...(await search('', /^(README|CONTRIBUTING|CHANGELOG)\.md$/, words)),
    ];
    expect(found.map(({ file, line, word, text }) => `${file}:${line}: ${word}: ${text}`)).toEqual(
      [],
    );
  });
});

async function search(
  folder: string,
  name: RegExp,
  words: readonly string[],
  select = (text: string): string => text,
): Promise<RefusedWord[]> {
  const path = join(ROOT, folder);
  const files = (await readdir(path, { recursive: folder !== '' })).filter((file) =>
    name.test(file),
  );
  const found = files.map(async (file) => {
    const text = await readFile(join(path, file), 'utf8');
    return findWords(join(folder, file), select(text), words);
  });
  return (await Promise.all(found)).flat();
}
