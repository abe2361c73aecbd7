import { z } from 'zod';
import { ConfigError } from '../errors.js';
import { type Address, HOST_FORM, isHost, parseAddress, plainHost } from '../address.js';

/** What a setting takes: in words, to follow "give", and as a schema that reads its text. */
interface Form<T> {
  readonly accepts: string;
  readonly schema: z.ZodType<T, string>;
}

/** One of a few words. */
export function choice<const T extends readonly [string, ...string[]]>(...values: T) {
  const last = values.at(-1) ?? '';
  return { accepts: `${values.slice(0, -1).join(', ')} or ${last}`, schema: z.enum(values) };
}

/** A duration in milliseconds, within bounds. */
export function duration(min: number, max: number) {
  return {
    accepts: `${DURATION_FORM}, from ${formatDuration(min)} to ${formatDuration(max)}`,
    schema: z
      .string()
      .transform((text, context) => {
        try {
          return parseDuration(text);
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error;
          context.addIssue({ code: 'custom', message: error.message });
          return z.NEVER;
        }
      })
      .pipe(z.number().min(min).max(max)),
  };
}

/** See `isHost`; an IPv6 address may have brackets around it. */
export function host() {
  return {
    accepts: HOST_FORM,
    schema: z.string().transform(plainHost).refine(isHost),
  };
}

/** The same, or nothing at all. */
export function optional<T>({ accepts, schema }: Form<T>) {
  return { accepts, schema: z.union([z.literal('').transform(() => undefined), schema]) };
}

export function isSchemaName(text: string): boolean {
  return /^(?!pg_)[^\p{Cc}]+$/u.test(text) && Buffer.byteLength(text) <= 63;
}

/** PostgreSQL's own units of time from a millisecond up; the longest comes first. */
const UNITS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1_000],
  ['ms', 1],
] as const;

const PATTERN = /^(\d+) ?(ms|s|min|h|d)$/;

/** What a duration looks like, for messages. */
const DURATION_FORM = 'a whole number with its unit, such as 500ms, 10s, 5min, 2h or 30d';

/**
 * Reads a duration: `500ms`, `10s`, `5min`, `2h`, `30d`. A bare number is refused, because a reader cannot
 * tell seconds from milliseconds; so is `m`, which could be minutes or milliseconds.
 *
 * @returns milliseconds, a whole number of 0 or more
 * @throws ConfigError when the text has no such form, or is too long to be counted in milliseconds
 */
export function parseDuration(text: string): number {
  const [, digits, name] = PATTERN.exec(text.trim()) ?? [];
  const factor = UNITS.find(([unit]) => unit === name)?.[1];
  const milliseconds = Number(digits) * (factor ?? NaN);
  if (Number.isSafeInteger(milliseconds)) return milliseconds;
  const problem = /^\d+$/.test(text.trim()) ? 'has no unit' : 'is not a duration';
  throw new ConfigError(`${JSON.stringify(text)} ${problem}; give ${DURATION_FORM}`);
}

/**
 * Writes a duration in the largest unit that keeps it a whole number, so that `parseDuration` reads the
 * same back.
 *
 * @param milliseconds a whole number of 0 or more
 */
export function formatDuration(milliseconds: number): string {
  for (const [unit, factor] of UNITS) {
    if (milliseconds >= factor && milliseconds % factor === 0) {
      return `${milliseconds / factor}${unit}`;
    }
  }
  return `${milliseconds}ms`;
}

/** Where one group's Patroni answers: any of these will do. */
export interface GroupEndpoints {
  readonly groupid: number;
  readonly urls: readonly string[];
}

/** Whether MPP_PATRONI is written as it should be. */
export function isEndpoints(text: string): boolean {
  const groups = split(text).map(([groupid]) => groupid);
  return (
    groups.length > 0 &&
    new Set(groups).size === groups.length &&
    split(text).every(
      ([groupid, urls]) => /^\d{1,9}$/.test(groupid) && urls.length > 0 && urls.every(isEndpoint),
    )
  );
}

/** Reads `1=http://a:8008,http://b:8008;2=https://c:8008`. */
export function parseEndpoints(text: string): readonly GroupEndpoints[] {
  return Object.freeze(split(text).map(([groupid, urls]) => ({ groupid: Number(groupid), urls })));
}

function split(text: string): [string, string[]][] {
  return text
    .split(';')
    .map((part) => part.trim())
    .filter((part) => part !== '')
    .map((part) => {
      const [, groupid = '', urls = ''] = /^([^=]*)=(.*)$/s.exec(part) ?? [];
      return [groupid.trim(), urls.split(',').map((url) => url.trim())];
    });
}

/** A user in the URL would show in the list of processes; MPP_PATRONI_AUTH does not. */
function isEndpoint(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, username, password, search, hash } = new URL(text);
  return /^https?:$/.test(protocol) && `${username}${password}${search}${hash}` === '';
}

/** What an address to listen on looks like, for messages. */
const LISTEN_FORM = 'a port from 1 to 65535, host:port, or [IPv6 address]:port';

/** An address to listen on: `9187` for the loopback address alone, or `host:port`. */
export function listenAddress() {
  return {
    accepts: LISTEN_FORM,
    schema: z
      .string()
      .regex(/(^|:)\d{1,5}$/)
      .transform((text) => parseAddress(text.includes(':') ? text : `${LOOPBACK}:${text}`))
      .refine(isListenAddress)
      .transform((address) => Object.freeze(address)),
  };
}

const LOOPBACK = '127.0.0.1';
/** To listen on each address of the machine; to connect to one of them has no meaning, so isHost refuses them. */
const UNSPECIFIED = ['0.0.0.0', '::'];

function isListenAddress({ host, port }: Address): boolean {
  const isName = UNSPECIFIED.includes(host) || (isHost(host) && !host.startsWith('/'));
  return isName && Number.isInteger(port) && port >= 1 && port <= 65_535;
}
