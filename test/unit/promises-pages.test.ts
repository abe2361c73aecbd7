import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';

describe.each(['reliability.md', 'acceptance.md'])('the page %s', async (name) => {
  const page = await readFile(join(packageRoot(), 'docs', name), 'utf8');
  const named = [...page.matchAll(/\| `([a-z-]+\.test\.ts)` +\| (.*?) +\|$/gm)].map(
    ([, file = '', test = '']) => [file, test] as const,
  );

  it('names tests', () => {
    expect(named.length).toBeGreaterThan(15);
  });

  it.each(named)('names a test that is there: %s, %s', async (file, test) => {
    const text = await readFile(join(packageRoot(), 'test', 'cluster', file), 'utf8');
    expect(text).toContain(test);
  });
});
