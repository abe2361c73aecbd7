import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.js';

const page = await readFile(join(packageRoot(), 'docs', 'reliability.md'), 'utf8');
const PROMISES = [...page.matchAll(/^\| .*? +\| `([a-z-]+\.test\.ts)` +\| (.*?) +\|$/gm)].map(
  ([, file = '', name = '']) => [file, name] as const,
);

describe('the page of promises', () => {
  it('has some', () => {
    expect(PROMISES.length).toBeGreaterThan(15);
  });

  it.each(PROMISES)('names a test that is there: %s, %s', async (file, name) => {
    const text = await readFile(join(packageRoot(), 'test', 'cluster', file), 'utf8');
    expect(text).toContain(name);
  });
});
