import type { ControllerProcess } from '../test/kit/controller-process.js';

/** What the controller says of the making of one hold; null where it does not say. */
export interface HoldLog {
  readonly yields: number | null;
  readonly looks: number | null;
}

/** The holds that the controller has made wait so far, oldest first. */
export function holdsOf(controller: ControllerProcess): HoldLog[] {
  return controller.log
    .filter(({ msg }) => /traffic waits/.test(msg))
    .map(({ yields, looks }) => ({
      yields: typeof yields === 'number' ? yields : null,
      looks: typeof looks === 'number' ? looks : null,
    }));
}

/** What the controller warned of, each sentence with its fields. */
export function warningsOf(controller: ControllerProcess): string[] {
  return controller.log
    .filter(({ level }) => level === 'warn' || level === 'error')
    .map(({ msg, server, err }) =>
      [msg, server, err && JSON.stringify(err)].filter(Boolean).join(' '),
    );
}
