import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { z } from 'zod';
import { ControllerProcess } from '../kit/controller-process.js';
import { runCli } from '../kit/cli.js';
import { packageRoot } from '../../src/package-root.js';
import { run } from '../kit/servers/processes.js';
import { startCluster, type Cluster } from '../kit/servers/index.js';
import { prepareCluster } from '../kit/standin/prepare.js';

/** npm may have to ask a registry. */
const NPM_TIMEOUT_MS = 180_000;

const QUIET = ['--silent', '--no-audit', '--no-fund', '--prefer-offline'];

/** All that a package holds; LICENSE, README.md and package.json npm adds by itself. */
const TOP_LEVEL = [
  'CHANGELOG.md',
  'LICENSE',
  'README.md',
  'dist',
  'hooks',
  'migrations',
  'package.json',
];

/** What npm keeps about an installed tree: one entry a package. */
const INSTALLED = z.object({ packages: z.record(z.string(), z.unknown()) });

const PACKAGE = z.object({ version: z.string() });

let folder: string;
/** Where the package is installed: not below this checkout. */
let home: string;
let installed: string;
let cluster: Cluster;

beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), 'mpp-package-')));
  home = join(folder, 'elsewhere');
  installed = join(home, 'node_modules', 'mpp-controller');
  const tarball = await pack(await copyCheckout(join(folder, 'checkout')));
  await mkdir(home);
  await run('npm', ['install', ...QUIET, '--prefix', home, tarball]);
  // Whatever still works does so without the checkout that it was made from.
  await rm(join(folder, 'checkout'), { recursive: true });
  cluster = await startCluster({ template: inject('template'), groups: 1, standbys: false });
  await prepareCluster(cluster, { tables: false });
}, NPM_TIMEOUT_MS);

afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
  await cluster.stop();
});

/**
 * This checkout without what it was built to: others use its dist at this moment, and packing has to
 * build it anew.
 */
async function copyCheckout(target: string): Promise<string> {
  const root = packageRoot();
  await mkdir(target);
  const left = new Set(['.git', 'build', 'coverage', 'dist', 'node_modules']);
  const names = (await readdir(root)).filter((name) => !left.has(name));
  for (const name of names) {
    await cp(join(root, name), join(target, name), { recursive: true });
  }
  await symlink(join(root, 'node_modules'), join(target, 'node_modules'), 'junction');
  return target;
}

/** @returns the path of the tarball. */
async function pack(checkout: string): Promise<string> {
  await run('npm', ['pack', '--silent', '--pack-destination', folder, checkout]);
  const name = (await readdir(folder)).find((entry) => entry.endsWith('.tgz'));
  if (name === undefined) throw new Error(`npm pack left no tarball in ${folder}`);
  return join(folder, name);
}

function program() {
  return [join(home, 'node_modules', '.bin', 'mpp-controller')] as const;
}

/** Runs the installed command, on the coordinator unless told otherwise. */
function command(...args: string[]) {
  const DATABASE_URL = `postgresql://postgres@${cluster.coordinator.address}/postgres`;
  return runCli(args, { DATABASE_URL }, program());
}

describe('the tarball', () => {
  it('holds what runs, and nothing of the tests, the demo or the benchmarks', async () => {
    expect((await readdir(installed)).sort()).toEqual(TOP_LEVEL);
    const built = await readdir(join(installed, 'dist'), { recursive: true });
    expect(built.filter((path) => /test|bench|demo\/|\.tsbuildinfo$/.test(path))).toEqual([]);
    expect(built).toContain('cli.js');
  });

  it('has every migration, byte for byte', async () => {
    const here = join(packageRoot(), 'migrations');
    const names = await readdir(here);
    expect(await readdir(join(installed, 'migrations'))).toEqual(names);
    for (const name of names) {
      const [ours, theirs] = await Promise.all(
        [here, join(installed, 'migrations')].map((place) => readFile(join(place, name))),
      );
      expect(theirs, name).toEqual(ours);
    }
  });

  it('brings fewer than 45 packages along, itself included', async () => {
    const text = await readFile(join(home, 'node_modules', '.package-lock.json'), 'utf8');
    const { packages } = INSTALLED.parse(JSON.parse(text));
    expect(Object.keys(packages)).toContain('node_modules/mpp-controller');
    expect(Object.keys(packages).length).toBeLessThan(45);
  });

  it('can be imported as a library, with types, and does nothing by that', async () => {
    const script = join(home, 'import.mjs');
    await writeFile(script, "console.log(Object.keys(await import('mpp-controller')).join(' '));");
    const { exitCode, stdout, stderr } = await runCli([script], {}, [process.execPath]);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(stdout.trim().split(' ').sort()).toEqual([
      ...['ConfigError', 'DatabaseStateError', 'MppError', 'UnreachableError', 'applyMigrations'],
      ...['checkMigrated', 'createController', 'createLogger', 'loadSettings'],
    ]);
  });

  it('has types that the example of the page on the library agrees with', async () => {
    const example = join(home, 'example.mts');
    await writeFile(example, await libraryExample());
    const modules = join(packageRoot(), 'node_modules');
    const [tsc, types] = [join(modules, 'typescript', 'bin', 'tsc'), join(modules, '@types')];
    const options = ['--noEmit', '--strict', '--skipLibCheck', '--target', 'es2022'];
    const found = ['--module', 'nodenext', '--types', 'node', '--typeRoots', types];
    await run(process.execPath, [tsc, ...options, ...found, example]);
  });
});

/** The program of docs/library.md, which is JavaScript as well. */
async function libraryExample(): Promise<string> {
  const page = await readFile(join(packageRoot(), 'docs', 'library.md'), 'utf8');
  const [, program] = /```ts\n(.*?)```/s.exec(page) ?? [];
  if (program === undefined) throw new Error('docs/library.md has no example');
  return program;
}

describe('the installed command', () => {
  it('runs by its own name, and tells version and help', async () => {
    const { version } = PACKAGE.parse(
      JSON.parse(await readFile(join(packageRoot(), 'package.json'), 'utf8')),
    );
    expect(await command('--version')).toEqual({
      exitCode: 0,
      stdout: `${version}\n`,
      stderr: '',
    });
    const help = await command('--help');
    expect(help).toMatchObject({ exitCode: 0, stderr: '' });
    for (const name of ['run', 'migrate', 'bootstrap', 'gucs', 'notify', 'status']) {
      expect(help.stdout).toMatch(new RegExp(`^  ${name} `, 'm'));
    }
  });

  it('migrates, runs, takes a report and shows it', async () => {
    const migrated = await command('migrate');
    expect(migrated).toMatchObject({ exitCode: 0, stderr: '' });
    const names = await readdir(join(packageRoot(), 'migrations'));
    expect(migrated.stdout.match(/^applied /gm)).toHaveLength(names.length);
    expect(await command('migrate')).toEqual({
      exitCode: 0,
      stdout: 'schema public is up to date: nothing to do\n',
      stderr: '',
    });

    const { coordinator, testBed } = cluster;
    const { reaper } = testBed;
    const controller = ControllerProcess.start({ coordinator, reaper, program: program() });
    try {
      await controller.active();
      const { host, port } = cluster.group(1).primary;
      const node = ['--group', '1', '--host', host, '--port', String(port)];
      expect(await command('notify', 'before_demote', ...node, '--wait')).toMatchObject({
        exitCode: 0,
        stdout: 'task 1: holding\n',
      });
      expect((await command('notify', 'after_promote', ...node, '--wait')).stdout).toMatch(
        /^task 2: done\n/,
      );
      const status = await command('status');
      expect(status).toMatchObject({ exitCode: 0, stderr: '' });
      expect(status.stdout).toContain('active');
      expect(await controller.end('SIGTERM')).toBe(0);
      expect(controller.stderr).toBe('');
    } finally {
      await controller.end('SIGKILL');
    }
  });
});

describe('the installed library', () => {
  it('runs the example of its page until SIGTERM', async () => {
    const example = join(home, 'example.mjs');
    await writeFile(example, await libraryExample());
    const { coordinator, testBed } = cluster;
    const { reaper } = testBed;
    const controller = ControllerProcess.start({
      ...{ coordinator, reaper },
      program: [process.execPath, example],
    });
    try {
      await controller.active();
      expect(await controller.end('SIGTERM')).toBe(0);
      expect(controller.stderr).toBe('');
    } finally {
      await controller.end('SIGKILL');
    }
  });
});
