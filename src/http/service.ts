import { eachDatabase, type Settings } from '../config/settings.js';
import { componentLogger, type Logger } from '../logger.js';
import type { Address } from '../address.js';
import type { Observer } from '../tasks/observer.js';
import { Metrics } from './metrics.js';
import { ObservedDatabase } from './observed-database.js';
import { pageRoutes } from './page-routes.js';
import { machineRoutes } from './routes.js';
import { HttpServer } from './server.js';

interface ServiceOptions {
  readonly settings: Settings;
  readonly address: Address;
  readonly logger: Logger;
}

/** Metrics and health of the controllers of this process, over HTTP. It belongs to the process, not to a database. */
export class HttpService {
  readonly #server: HttpServer;
  readonly #databases: readonly ObservedDatabase[];

  constructor({ settings, address, logger: root }: ServiceOptions) {
    const logger = componentLogger(root, 'http');
    const metrics = new Metrics(settings.databases);
    this.#databases = eachDatabase(settings).map((own) => {
      const database = settings.databases && own.connection.database;
      return new ObservedDatabase({ settings: own, database, metrics, logger });
    });
    const routes = [...pageRoutes(this.#databases), ...machineRoutes(metrics, this.#databases)];
    this.#server = new HttpServer({ address, routes, logger });
  }

  /** For the controller of one database of MPP_DATABASES; without it, for the one that there is. */
  readonly observe = (database: string | undefined): Observer => {
    const observed = this.#databases.find((one) => one.database === database);
    if (observed === undefined) throw new Error(`there is no database ${database ?? ''}`);
    return observed.observer;
  };

  /** @throws ConfigError when it cannot listen at its address. */
  async start(): Promise<void> {
    await this.#server.start();
  }

  async stop(): Promise<void> {
    await Promise.all([this.#server.stop(), ...this.#databases.map((one) => one.stop())]);
  }
}
