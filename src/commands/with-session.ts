import type pg from 'pg';
import type { Settings } from '../config/settings.js';
import { MppError, UnreachableError } from '../errors.js';
import { closeSession } from '../postgres/close.js';
import { describeConnection, errorText, openSession } from '../postgres/session.js';
import { isSessionLost } from '../postgres/sqlstate.js';

/**
 * Runs `work` in a session of its own whose statements name the schema as `@mpp.`, and ends the session in any case.
 *
 * @throws UnreachableError when there is no session to be had, or it is lost
 */
export async function withSession<T>(
  settings: Settings,
  purpose: string,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = await openSession(settings.connection, purpose, settings.schema);
  try {
    return await work(client);
  } catch (error) {
    if (error instanceof MppError || !isSessionLost(error)) throw error;
    throw new UnreachableError(
      `lost the session with ${describeConnection(settings.connection)}: ${errorText(error)}`,
      error,
    );
  } finally {
    await closeSession(client);
  }
}
