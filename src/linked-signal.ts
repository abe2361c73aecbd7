import { setMaxListeners } from 'node:events';

/** A signal that others abort, until it is released. */
export interface LinkedSignal {
  readonly signal: AbortSignal;
  /** Lets go of the others. Idempotent. */
  release(): void;
}

/**
 * A signal that is aborted with any of `sources`, or after `timeoutMs`. Not AbortSignal.any: each of its
 * signals stays on the list of a source for as long as that lives, and a source may live for months.
 */
export function linkSignals(sources: readonly AbortSignal[], timeoutMs?: number): LinkedSignal {
  const controller = new AbortController();
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(
          () => end(new DOMException(`no answer within ${timeoutMs} ms`, 'TimeoutError')),
          timeoutMs,
        );
  const listeners = sources.map((source) => ({ source, listen: () => end(source.reason) }));
  const release = (): void => {
    clearTimeout(timer);
    for (const { source, listen } of listeners) source.removeEventListener('abort', listen);
  };
  const end = (reason: unknown): void => {
    release();
    controller.abort(reason);
  };
  for (const { source, listen } of listeners) {
    if (source.aborted) end(source.reason);
    else if (!controller.signal.aborted) {
      // As many as there are nodes: Node.js warns of a leak from eleven on.
      setMaxListeners(0, source);
      source.addEventListener('abort', listen);
    }
  }
  return { signal: controller.signal, release };
}
