import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { CHECKS } from '../../src/doctor/checks.js';
import { packageRoot } from '../../src/package-root.js';

it('the page of the doctor has each check in its order, and no other', async () => {
  const page = await readFile(join(packageRoot(), 'docs', 'doctor.md'), 'utf8');
  const [, table = ''] = page.split('## Checks');
  const documented = [...table.matchAll(/^\| `([a-z0-9-]+)` /gm)].map(([, id]) => id);
  expect(documented).toEqual(CHECKS.map(({ id }) => id));
});
