import { cp, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../src/package-root.js';
import type { Program } from './cli.js';

/** This package, as it was built, in a folder of its own: so that it can be another version. */
export class Installation {
  readonly program: Program;
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
    this.program = [process.execPath, join(folder, 'dist', 'cli.js')];
  }

  static async create(): Promise<Installation> {
    const folder = await mkdtemp(join(tmpdir(), 'mpp-installation-'));
    for (const name of ['dist', 'migrations', 'package.json']) {
      await cp(join(packageRoot(), name), join(folder, name), { recursive: true });
    }
    await symlink(join(packageRoot(), 'node_modules'), join(folder, 'node_modules'), 'junction');
    return new Installation(folder);
  }

  /**
   * Makes it the next version, which brings a migration.
   *
   * @returns the number of the migration.
   */
  async upgrade(version: string, sql: string): Promise<number> {
    await this.rename(version);
    const migrations = join(this.#folder, 'migrations');
    const names = (await readdir(migrations)).filter((name) => name.endsWith('.sql'));
    const next = Math.max(...names.map((name) => parseInt(name))) + 1;
    await writeFile(
      join(migrations, `${next}_future${next}.sql`),
      `SELECT set_config('search_path', current_setting('mpp.objects_path'), true);
       ${sql};
       SELECT set_config('search_path', current_setting('mpp.bookkeeping_path'), true);`,
    );
    return next;
  }

  /** Makes it an older version, which knows the migrations up to this number alone. */
  async downgrade(version: string, last: number): Promise<void> {
    await this.rename(version);
    const migrations = join(this.#folder, 'migrations');
    const names = (await readdir(migrations)).filter((name) => parseInt(name) > last);
    await Promise.all(names.map((name) => rm(join(migrations, name))));
  }

  /** Another version of the same schema. */
  async rename(version: string): Promise<void> {
    const file = join(this.#folder, 'package.json');
    const text = await readFile(file, 'utf8');
    await writeFile(file, JSON.stringify({ ...(JSON.parse(text) as object), version }));
  }

  async remove(): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true });
  }
}
