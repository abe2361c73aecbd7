import type { Settings } from '../config/settings.js';
import { createMPP } from '../mpp/index.js';
import { requireContract } from '../postgres/migration-session.js';
import { sqlState } from '../postgres/sqlstate.js';
import { CommandError, EXIT } from './exit.js';
import { withSession } from './flags.js';
import { asCommandError } from './submit.js';

/** Runs one statement of an operator, and says who refused it in the exit code. */
export async function askAsOperator<R extends object>(
  settings: Settings,
  statement: string,
  values: readonly unknown[],
): Promise<R[]> {
  const mpp = createMPP(settings);
  return withSession(settings, 'operator', async (client) => {
    await mpp.refuseWorker(client);
    await requireContract(client, settings.schema);
    const { rows } = await client.query<R>(statement, [...values]);
    return rows;
  }).catch((error: unknown) => {
    const exitCode = REFUSALS.get(sqlState(error) ?? '');
    if (exitCode === undefined || !(error instanceof Error)) throw asCommandError(error);
    const { detail = '', hint = '' } = error as { detail?: string; hint?: string };
    throw new CommandError(
      exitCode,
      [error.message, detail, hint].filter(Boolean).join('. '),
      error,
    );
  });
}

/** no_data_found, object_not_in_prerequisite_state, lock_not_available. */
const REFUSALS: ReadonlyMap<string, 2 | 3 | 4> = new Map([
  ['P0002', EXIT.usage],
  ['55000', EXIT.refused],
  ['55P03', EXIT.timedOut],
] as const);
