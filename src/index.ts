/**
 * The library: what the commands do, for a program that runs a controller of its own. Importing it
 * does nothing; everything else of this package may change at any time.
 */
export { loadSettings, type Settings } from './config/settings.js';
export { createController, type Controller } from './controller/controller.js';
export { ConfigError, DatabaseStateError, MppError, UnreachableError } from './errors.js';
export { createLogger, type Logger, type LogLevel } from './logger.js';
export { applyMigrations, checkMigrated, type MigrateOptions } from './postgres/migrate.js';
export type { Connection } from './postgres/session.js';
