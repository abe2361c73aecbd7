import { isIPv4, isIPv6 } from 'node:net';

/** A node's address, as pg_dist_node has it. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

export function sameAddress(a: Address, b: Address): boolean {
  return a.host === b.host && a.port === b.port;
}

export function formatAddress({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Reads `host:port` or `[ipv6]:port`. The table's trigger has checked the form before. */
export function parseAddress(text: string): Address {
  const colon = text.lastIndexOf(':');
  return {
    host: text.slice(0, colon).replace(/^\[(.*)\]$/, '$1'),
    port: Number(text.slice(colon + 1)),
  };
}

const MOST_BYTES = 255;
const LABEL = '[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?';
const NAME = new RegExp(`^${LABEL}(?:[.]${LABEL})*[.]?$`);
const DIRECTORY = /^(?:\/[A-Za-z0-9._~@%+=#-]+)+$/;
/** Only a link-local address has a zone. */
const ZONE = /^(fe[89ab][0-9a-f]:.*)%[a-z0-9._-]{1,15}$/i;

/** What `isHost` takes, in words. */
export const HOST_FORM =
  'one DNS name, IPv4 address, IPv6 address or absolute socket directory, at most 255 bytes, ' +
  'without port, mask or scheme';

/**
 * Whether a text can be a node's host: a DNS name, an IPv4 or IPv6 address, or the absolute path of a
 * socket directory, in ASCII. `mpp_is_host` in migrations/2_tasks.sql is the same rule.
 */
export function isHost(text: string): boolean {
  if (Buffer.byteLength(text) > MOST_BYTES) return false;
  if (text.startsWith('/')) return DIRECTORY.test(text);
  // The unspecified address, 0.0.0.0 or ::, is one to listen on and none to connect to.
  if (/^[0:.]+$/.test(text)) return false;
  // What has nothing but digits and dots is no name: inet_aton would read 1.2 as 1.0.0.2.
  if (/^[0-9.]+$/.test(text)) return isIPv4(text);
  if (!text.includes(':')) return NAME.test(text);
  const address = text.replace(ZONE, '$1');
  return isIPv6(address) && !address.includes('%');
}

/** An IPv6 address in brackets without them, as pg_dist_node has it; any other text as it is. */
export function plainHost(text: string): string {
  return text.replace(/^\[([^[\]]*:[^[\]]*)\]$/, '$1');
}
