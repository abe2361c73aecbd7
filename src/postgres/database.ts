import type pg from 'pg';
import { UnreachableError } from '../errors.js';
import { closeSession } from './close.js';
import { eachServer, openOnServer, openSession, type Connection } from './session.js';
import { sqlState } from './sqlstate.js';

/**
 * Opens a session in the database of `connection`, which is made where it is missing.
 *
 * @throws UnreachableError; whatever PostgreSQL says when it cannot be made
 */
export async function openDatabase(
  connection: Connection,
): Promise<{ client: pg.Client; made: boolean }> {
  let made = false;
  const client = await openSession(connection, 'bootstrap').catch(async (error: unknown) => {
    if (!isMissingDatabase(error)) throw error;
    made = await createDatabase(connection, connection.database ?? connection.user ?? '');
    return openSession(connection, 'bootstrap');
  });
  return { client, made };
}

/**
 * Chooses one of several servers, for what opens sessions time and again and must find the same. Its database
 * may have yet to be made.
 *
 * @throws UnreachableError
 */
export async function chooseServer(connection: Connection): Promise<Connection> {
  if (connection.servers === undefined) return connection;
  const opened = await openOnServer(connection, 'bootstrap').catch((error: unknown) => {
    if (!isMissingDatabase(error)) throw error;
    return openOnServer({ ...connection, database: 'postgres' }, 'bootstrap');
  });
  await opened.client.end().catch(() => undefined);
  return eachServer(connection)[opened.index] ?? connection;
}

/** True for a session that was refused because its database is not there. */
export function isMissingDatabase(error: unknown): boolean {
  return error instanceof UnreachableError && sqlState(error.cause) === UNDEFINED_DATABASE;
}

/** @returns false when another session made it first */
async function createDatabase(connection: Connection, database: string): Promise<boolean> {
  const client = await openSession({ ...connection, database: 'postgres' }, 'bootstrap');
  try {
    const { rows } = await client.query<{ statement: string }>(
      "SELECT format('CREATE DATABASE %I', $1::text) AS statement",
      [database],
    );
    for (const { statement } of rows) await client.query(statement);
    return true;
  } catch (error) {
    if (isDuplicate(error)) return false;
    throw error;
  } finally {
    await closeSession(client);
  }
}

/** Two who make the same thing at once: the slower one finds it, or runs into the catalog's index. */
export function isDuplicate(error: unknown): boolean {
  return ['42P04', '42710', '23505'].includes(sqlState(error) ?? '');
}

const UNDEFINED_DATABASE = '3D000';
