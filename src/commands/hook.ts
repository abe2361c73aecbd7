import { within } from '../wait.js';
import { CommandError, EXIT, type Ending } from './exit.js';

/** How long `notify --hook` waits for an acknowledgement unless --wait says otherwise. */
export const HOOK_WAIT_MS = 10_000;
/** How much later it ends even when neither the network nor the database answers. */
export const HOOK_GRACE_MS = 2_000;

/** Whether a command line is that of an HA manager's hook, whose exit code must not stop a promotion. */
export function isHook(args: readonly string[]): boolean {
  return args.includes('notify') && args.includes('--hook');
}

/** The same ending for a hook: exit code 0, and one line that says what the code would have been. */
export function endingOfHook({ exitCode, line }: Ending): Ending {
  if (exitCode === EXIT.ok) return { exitCode, line };
  const said = line ?? 'wrong usage, see above';
  return {
    exitCode: EXIT.ok,
    line: `${said} (with --hook the exit code is 0 instead of ${exitCode})`,
  };
}

/**
 * What `work` comes to, in bounded time: a name that is not resolved or a peer that is silent would
 * take longer than what the work itself bounds.
 *
 * @throws CommandError with `EXIT.timedOut` when the time is over.
 */
export async function bounded<T>(ms: number, work: Promise<T>): Promise<T> {
  const late = Symbol('late');
  const result = await within(ms, work, late);
  if (result !== late) return result;
  // It may still fail, which is of no interest by then.
  work.catch(() => undefined);
  throw new CommandError(
    EXIT.timedOut,
    'neither reported nor refused in time; see mpp-controller status, or report again, which does no harm',
  );
}
