import type { Settings } from './config.js';
import { nodeInDatabase } from './postgres/node-connection.js';

/** Names of databases, as MPP_DATABASES gives them: `a,b`. */
export function parseDatabases(text: string): string[] {
  return text.split(',').map((name) => name.trim());
}

/** Whether each is the name of a database, and none is there twice. */
export function areDatabases(names: readonly string[]): boolean {
  const isName = (name: string): boolean =>
    /^[^\p{Cc}]+$/u.test(name) && Buffer.byteLength(name) <= 63;
  return names.every(isName) && new Set(names).size === names.length;
}

/**
 * The settings for work in one of several databases on the same nodes: sessions, those with other nodes
 * included, are in that database, and `otherDatabases` are the rest.
 */
export function inDatabase(settings: Settings, database: string): Settings {
  return Object.freeze({
    ...settings,
    connection: Object.freeze({ ...settings.connection, database }),
    node: nodeInDatabase(settings.node, database),
    otherDatabases: Object.freeze(settings.databases?.filter((name) => name !== database) ?? []),
  });
}

/** The settings for each database of MPP_DATABASES; without it, those for the one that there is. */
export function eachDatabase(settings: Settings): Settings[] {
  return settings.databases?.map((name) => inDatabase(settings, name)) ?? [settings];
}
