import { isIP } from 'node:net';
import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';
import type { Parameters } from './parameters.js';

interface State {
  readonly standby: boolean;
  readonly readonly: boolean;
}

/**
 * Checks that a session is what target_session_attrs asks for; `prefer-standby` asks for nothing that a server
 * could lack.
 *
 * @throws DatabaseStateError `IN_RECOVERY` for a standby, `READ_ONLY` for a server that takes no writes,
 *   `NOT_IN_RECOVERY` and `READ_WRITE` for the opposite
 */
export async function checkTarget(
  client: ClientBase,
  target: TargetSessionAttrs,
  queryTimeoutMs: number | undefined,
): Promise<void> {
  if (target === 'any' || target === 'prefer-standby') return;
  const query = { text: STATE, ...(queryTimeoutMs ? { query_timeout: queryTimeoutMs } : {}) };
  const { rows } = await client.query<State>(query);
  const [state] = rows;
  if (state === undefined) throw new Error('the statement STATE returns one row');
  const lack = lackOf(state, target);
  if (lack === undefined) return;
  const [code, text] = lack;
  throw new DatabaseStateError(code, `${text}, and target_session_attrs is ${target}`, {
    retryable: true,
  });
}

/** @throws DatabaseStateError `READ_ONLY` when sessions of this server or role take no writes */
export async function refuseReadOnly(client: ClientBase): Promise<void> {
  const { rows } = await client.query<State>(STATE);
  if (rows[0]?.readonly !== true) return;
  throw new DatabaseStateError(
    'READ_ONLY',
    'the coordinator takes no writes: default_transaction_read_only is on for the server, this database ' +
      'or this role; turn it off',
    { retryable: true },
  );
}

function lackOf(
  state: State,
  target: Exclude<TargetSessionAttrs, 'any' | 'prefer-standby'>,
): readonly [code: string, text: string] | undefined {
  switch (target) {
    case 'read-write':
      if (state.standby) return IS_STANDBY;
      return state.readonly ? ['READ_ONLY', 'it is read-only'] : undefined;
    case 'read-only':
      return state.readonly ? undefined : ['READ_WRITE', 'it takes writes'];
    case 'primary':
      return state.standby ? IS_STANDBY : undefined;
    case 'standby':
      return state.standby ? undefined : ['NOT_IN_RECOVERY', 'it is no standby'];
  }
}

const IS_STANDBY = ['IN_RECOVERY', 'it is a standby'] as const;

const STATE = `
  SELECT pg_catalog.pg_is_in_recovery() AS standby,
         pg_catalog.current_setting('transaction_read_only') = 'on' AS readonly`;

/** One server that may be tried. */
export interface ServerAddress {
  /** A name, an address, or the folder of a Unix socket. */
  readonly host: string;
  readonly port: number;
  /** The address to connect to, if `host` is not to be resolved. */
  readonly hostaddr?: string;
}

/** What a server must be, in libpq's words. */
export type TargetSessionAttrs = (typeof TARGETS)[number];

const TARGETS = ['any', 'read-write', 'read-only', 'primary', 'standby', 'prefer-standby'] as const;

const DEFAULT_PORT = 5432;

/** The servers in the order in which they are tried. @throws ConfigError */
export function readServers(parameters: Parameters): ServerAddress[] {
  const hostaddrs = list(parameters.get('hostaddr'));
  const hosts = list(parameters.get('host')) ?? hostaddrs ?? ['localhost'];
  if (hostaddrs && hostaddrs.length !== hosts.length) {
    throw parameters.wrong('hostaddr', 'give as many addresses as there are hosts');
  }
  const wrong = hostaddrs?.find((address) => address !== '' && isIP(address) === 0);
  if (wrong !== undefined) throw parameters.wrong('hostaddr', 'give IP addresses');
  const ports = readPorts(parameters, hosts.length);
  return hosts.map((host, index) => {
    const hostaddr = hostaddrs?.[index] ?? '';
    return {
      host: host || hostaddr || 'localhost',
      port: ports[index] ?? DEFAULT_PORT,
      ...(hostaddr !== '' && { hostaddr }),
    };
  });
}

/** With several hosts and nothing said the one that takes writes, unlike libpq: reports are writes. */
export function readTarget(
  parameters: Parameters,
  servers: readonly ServerAddress[],
): TargetSessionAttrs {
  const given = parameters.choice('target_session_attrs', TARGETS);
  return given ?? (servers.length > 1 ? 'read-write' : 'any');
}

/** `host:port` as people write it. */
export function formatServer({ host, port }: ServerAddress): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function list(text: string | undefined): string[] | undefined {
  return text?.split(',').map((part) => part.trim());
}

/** One for all, or one for each. */
function readPorts(parameters: Parameters, count: number): number[] {
  const ports = list(parameters.get('port')) ?? [''];
  if (ports.length !== 1 && ports.length !== count) {
    throw parameters.wrong('port', 'give one port, or as many as there are hosts');
  }
  const numbers = ports.map((text) => {
    const port = text === '' ? DEFAULT_PORT : /^\d{1,5}$/.test(text) ? Number(text) : 0;
    if (port < 1 || port > 65_535) throw parameters.wrong('port', 'give a number from 1 to 65535');
    return port;
  });
  return numbers.length === 1
    ? Array.from({ length: count }, () => numbers[0] ?? DEFAULT_PORT)
    : numbers;
}
