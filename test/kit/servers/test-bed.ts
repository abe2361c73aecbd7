import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveBinaries, resolveOwner, type Binaries } from './binaries.js';
import { copyStoppedData } from './data-folder.js';
import { createDataFolder, createProgramFolder, give, removeFolder } from './folder.js';
import { PortAllocator } from './ports.js';
import { Reaper } from './reaper.js';
import { Server } from './server.js';
import { baseSettings, type Settings } from './settings.js';
import { cloneFrom } from './standby.js';
import { buildTemplate, type Prepare, type Template } from './template.js';

export interface TestBedOptions {
  /** A template made elsewhere, with its binaries; without one the test bed makes its own. */
  template?: Template;
  /** Prepares the database when the test bed makes the template. */
  prepare?: Prepare;
  /** Where `MPP_PG_BIN` and the like are read; default `process.env`. */
  env?: NodeJS.ProcessEnv;
}

/**
 * Where servers live: a folder, ports, and a reaper that leaves nothing behind, even when this
 * process gets SIGKILL. Everything made in it goes with `close`.
 */
export class TestBed {
  readonly template: Template;
  readonly reaper: Reaper;
  readonly #place: Place;
  readonly #servers = new Set<Server>();

  private constructor(place: Place, template: Template) {
    this.#place = place;
    this.reaper = place.reaper;
    this.template = template;
  }

  /** @throws Error when there is no PostgreSQL to run, or initdb fails; nothing is left then. */
  static async open(options: TestBedOptions = {}): Promise<TestBed> {
    const owner = options.template?.binaries ?? (await resolveOwner());
    const reaper = new Reaper();
    reaper.start();
    const ports = new PortAllocator();
    try {
      const folder = await createDataFolder(owner);
      reaper.watchFolder(folder);
      const binaries =
        options.template?.binaries ??
        (await resolveBinaries(options.env, {
          owner,
          stagingFolder: async () => {
            const programs = await createProgramFolder(owner);
            reaper.watchFolder(programs);
            return programs;
          },
        }));
      const place: Place = { binaries, folder, ports, reaper };
      const template =
        options.template ??
        (await buildTemplate(await emptyServer(place, 'template'), options.prepare));
      return new TestBed(place, template);
    } catch (error) {
      await reaper.stop();
      await ports.releaseAll();
      throw error;
    }
  }

  get binaries(): Binaries {
    return this.#place.binaries;
  }

  /** Makes a server from the template; it is not started. Names are unique in a test bed. */
  async createServer(name: string, settings: Settings = {}): Promise<Server> {
    const server = await emptyServer(this.#place, name, settings);
    this.#servers.add(server);
    await copyStoppedData(this.template.data, server.data, this.binaries);
    return server;
  }

  /** Makes a streaming standby of a running server, and starts it. */
  async createStandby(
    primary: Server,
    name = `${primary.name}-standby`,
    settings: Settings = {},
  ): Promise<Server> {
    const standby = await emptyServer(this.#place, name, settings);
    this.#servers.add(standby);
    await cloneFrom(primary, standby);
    return standby;
  }

  /** Stops all servers and removes all that the test bed made. Idempotent. */
  async close(): Promise<void> {
    try {
      await Promise.all([...this.#servers].map((server) => server.stop('immediate')));
      await removeFolder(this.#place.folder);
    } finally {
      await this.reaper.stop();
      await this.#place.ports.releaseAll();
    }
  }
}

interface Place {
  readonly binaries: Binaries;
  readonly folder: string;
  readonly ports: PortAllocator;
  readonly reaper: Reaper;
}

/** A server whose folder is there, and whose data is not. */
async function emptyServer(place: Place, name: string, settings: Settings = {}): Promise<Server> {
  const { binaries, reaper } = place;
  const folder = join(place.folder, name);
  await mkdir(folder);
  await give(folder, binaries);
  const port = await place.ports.allocate();
  const all = { ...baseSettings(binaries), ...settings };
  return new Server({ name, folder, port, binaries, reaper, settings: all });
}
