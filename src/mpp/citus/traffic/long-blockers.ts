import type { Watch } from '../../../drain/watch.js';
import type { PauseRequest } from '../../abstract.js';

/** How long a session may block a hold before a person is told, and how often it is looked for. */
const TOLD_AFTER_MS = 1_000;

/**
 * Names the sessions that block a hold while it is being opened.
 *
 * @returns ends it
 */
export function tellBlockers(
  { cooldownMs, onBlocked }: Pick<PauseRequest, 'cooldownMs' | 'onBlocked'>,
  watch: Pick<Watch, 'longBlockers'>,
): () => void {
  const cooledAt = new Date(Date.now() + cooldownMs).toISOString().slice(11, 19);
  let told = '';
  let ended = false;
  const look = async (): Promise<void> => {
    const blockers = (await watch.longBlockers(TOLD_AFTER_MS)).join('; ');
    if (ended || blockers === '' || blockers === told) return;
    told = blockers;
    onBlocked(`waits for ${blockers}; the cooldown ends at ${cooledAt} UTC`);
  };
  const timer = setInterval(() => void look(), TOLD_AFTER_MS);
  return () => {
    ended = true;
    clearInterval(timer);
  };
}
