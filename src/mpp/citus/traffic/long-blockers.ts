import type { BlockingClient } from '../../../drain/server.js';
import type { Watch } from '../../../drain/watch.js';
import type { PauseRequest } from '../../abstract.js';

/** How long a transaction may block a hold before a person is told, in milliseconds. */
const TOLD_AFTER_MS = 1_000;
const LOOK_MS = 250;
/** Locks are given back for a moment between two tries; what blocks both has blocked all the time. */
const GAP_MS = 700;

/** When a transaction was first and last seen to block the hold. */
interface Sighting {
  readonly since: number;
  readonly at: number;
}

/**
 * Names the sessions that block a hold while it is being opened.
 *
 * @returns ends it
 */
export function tellBlockers(
  { cooldownMs, onBlocked }: Pick<PauseRequest, 'cooldownMs' | 'onBlocked'>,
  watch: Pick<Watch, 'clientsBlocking'>,
): () => void {
  const cooledAt = new Date(Date.now() + cooldownMs).toISOString().slice(11, 19);
  const sightings = new Map<string, Sighting>();
  let told = '';
  let ended = false;
  const isLong = ({ transaction }: BlockingClient): boolean => {
    const seen = sightings.get(transaction);
    return seen !== undefined && seen.at - seen.since >= TOLD_AFTER_MS;
  };
  const look = async (): Promise<void> => {
    const clients = await watch.clientsBlocking();
    const now = performance.now();
    for (const { transaction } of clients) {
      const seen = sightings.get(transaction);
      const since = seen !== undefined && now - seen.at <= GAP_MS ? seen.since : now;
      sightings.set(transaction, { since, at: now });
    }
    const long = clients.filter(isLong);
    const transactions = long.map(({ transaction }) => transaction).join();
    if (ended || transactions === '' || transactions === told) return;
    told = transactions;
    const named = long.map(({ described }) => described).join('; ');
    onBlocked(`waits for ${named}; the cooldown ends at ${cooledAt} UTC`);
  };
  const timer = setInterval(() => void look(), LOOK_MS);
  return () => {
    ended = true;
    clearInterval(timer);
  };
}
