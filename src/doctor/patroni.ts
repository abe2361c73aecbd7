import type { Settings } from '../config/settings.js';
import type { GroupEndpoints } from '../config/formats.js';
import { errorText } from '../postgres/session.js';
import { getJson, readAuthority, type Access } from '../topology/patroni.js';
import type { PatroniSeen } from './observed.js';

/** How long an endpoint may take to answer, in milliseconds. */
const ANSWER_MS = 2_000;

/** @throws ConfigError when the file of MPP_PATRONI_CA cannot be read. */
export function patroniAccess({ patroniCa, patroniAuth }: Settings): Access {
  return { ca: readAuthority(patroniCa), auth: patroniAuth };
}

/**
 * Asks the Patroni of each group for its configuration, all at once; any member answers for its group. Never
 * throws.
 */
export async function askPatroni(
  { patroni }: Settings,
  access: Access,
): Promise<PatroniSeen[] | null> {
  if (patroni === undefined) return null;
  return Promise.all(patroni.map((group) => askGroup(group, access)));
}

async function askGroup({ groupid, urls }: GroupEndpoints, access: Access): Promise<PatroniSeen> {
  const { signal } = new AbortController();
  const asking = urls.map(async (url): Promise<PatroniSeen> => {
    const config = await getJson(url, '/config', access, ANSWER_MS, signal);
    return { groupid, url, silence: null, hasCitusSection: hasCitusSection(config) };
  });
  return Promise.any(asking).catch((error: unknown) => ({
    groupid,
    url: urls.join(','),
    silence: errorText(error),
    hasCitusSection: false,
  }));
}

function hasCitusSection(config: unknown): boolean {
  return (
    typeof config === 'object' && config !== null && 'citus' in config && Boolean(config.citus)
  );
}
