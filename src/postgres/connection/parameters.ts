import { ConfigError } from '../../errors.js';

/** What is done with one of libpq's parameters. */
interface Parameter {
  /** Its variable, where libpq has one. */
  readonly env?: `PG${string}`;
  /** Set where it is not `used`: values that change nothing, and what to do about any other. */
  readonly refused?: { readonly harmless: readonly string[]; readonly instead: string };
  /** True where libpq's parameter has no effect on sessions of this program. */
  readonly ignored?: true;
}

const used = (env?: Parameter['env']): Parameter => ({ ...(env && { env }) });
const ignored = (env?: Parameter['env']): Parameter => ({ ...used(env), ignored: true });
const refused = (
  env: Parameter['env'] | undefined,
  harmless: readonly string[],
  instead: string,
): Parameter => ({ ...used(env), refused: { harmless, instead } });

const NO_GSS = 'encrypt with sslmode=require, verify-ca or verify-full';
const KERNEL = "leave it out; the kernel's net.ipv4.tcp_* settings are used";
const OAUTH = 'log in by password, certificate, peer or trust';

/** Every parameter of libpq (PostgreSQL 18). One that is not here is refused, as libpq does. */
const PARAMETERS = new Map<string, Parameter>([
  ['host', used('PGHOST')],
  ['hostaddr', used('PGHOSTADDR')],
  ['port', used('PGPORT')],
  ['dbname', used('PGDATABASE')],
  ['user', used('PGUSER')],
  ['password', used('PGPASSWORD')],
  ['passfile', used('PGPASSFILE')],
  ['options', used('PGOPTIONS')],
  ['connect_timeout', used('PGCONNECT_TIMEOUT')],
  ['target_session_attrs', used('PGTARGETSESSIONATTRS')],
  ['keepalives', used()],
  ['keepalives_idle', used()],
  ['sslmode', used('PGSSLMODE')],
  ['sslnegotiation', used('PGSSLNEGOTIATION')],
  ['sslrootcert', used('PGSSLROOTCERT')],
  ['sslcert', used('PGSSLCERT')],
  ['sslkey', used('PGSSLKEY')],
  ['sslpassword', used()],
  ['sslcrl', used('PGSSLCRL')],
  ['sslsni', used('PGSSLSNI')],
  ['ssl_min_protocol_version', used('PGSSLMINPROTOCOLVERSION')],
  ['ssl_max_protocol_version', used('PGSSLMAXPROTOCOLVERSION')],

  // Sessions have a name and an encoding of their own.
  ['application_name', ignored('PGAPPNAME')],
  ['fallback_application_name', ignored()],
  ['client_encoding', ignored('PGCLIENTENCODING')],
  // No library compresses any more, and what is only for GSSAPI matters only with it.
  ['sslcompression', ignored('PGSSLCOMPRESSION')],
  ['krbsrvname', ignored('PGKRBSRVNAME')],
  ['gsslib', ignored('PGGSSLIB')],
  ['gssdelegation', ignored('PGGSSDELEGATION')],
  ['servicefile', ignored('PGSERVICEFILE')],
  ['max_protocol_version', ignored('PGMAXPROTOCOLVERSION')],

  ['service', refused('PGSERVICE', [], 'give in DATABASE_URL what the service holds')],
  ['gssencmode', refused('PGGSSENCMODE', ['disable', 'prefer'], NO_GSS)],
  [
    'channel_binding',
    refused(
      'PGCHANNELBINDING',
      ['disable', 'prefer'],
      'verify the server with sslmode=verify-full',
    ),
  ],
  [
    'require_auth',
    refused('PGREQUIREAUTH', [], 'verify the server with sslmode=verify-full, and leave it out'),
  ],
  [
    'requirepeer',
    refused('PGREQUIREPEER', [], 'leave it out, and give the folder of the socket to its server'),
  ],
  ['sslcrldir', refused('PGSSLCRLDIR', [], 'give one file in sslcrl')],
  ['sslcertmode', refused('PGSSLCERTMODE', ['allow'], 'leave it out, and sslcert with it')],
  ['sslkeylogfile', refused(undefined, [], 'leave it out')],
  [
    'load_balance_hosts',
    refused('PGLOADBALANCEHOSTS', ['disable'], 'hosts are tried in the order given; leave it out'),
  ],
  ['keepalives_interval', refused(undefined, ['0'], KERNEL)],
  ['keepalives_count', refused(undefined, ['0'], KERNEL)],
  ['tcp_user_timeout', refused(undefined, ['0'], KERNEL)],
  ['replication', refused(undefined, ['false', 'off', 'no', '0'], 'leave it out')],
  [
    'min_protocol_version',
    refused('PGMINPROTOCOLVERSION', ['3.0'], 'leave it out; version 3.0 of the protocol is spoken'),
  ],
  ['scram_client_key', refused(undefined, [], 'give the password')],
  ['scram_server_key', refused(undefined, [], 'give the password')],
  ['oauth_issuer', refused(undefined, [], OAUTH)],
  ['oauth_client_id', refused(undefined, [], OAUTH)],
  ['oauth_client_secret', refused(undefined, [], OAUTH)],
  ['oauth_scope', refused(undefined, [], OAUTH)],
]);

/** A value, and where it comes from, for errors: `sslmode of DATABASE_URL`, `PGSSLMODE`. */
export interface Given {
  readonly value: string;
  readonly origin: string;
}

/** What is given of libpq's parameters, each with its origin. */
export class Parameters {
  readonly #given: ReadonlyMap<string, Given>;

  constructor(given: ReadonlyMap<string, Given>) {
    this.#given = given;
  }

  get(name: string): string | undefined {
    return this.#given.get(name)?.value;
  }

  /** Where a value came from; the name itself when none was given. */
  origin(name: string): string {
    return this.#given.get(name)?.origin ?? name;
  }

  /** @throws ConfigError when the value is none of these */
  choice<T extends string>(name: string, choices: readonly T[]): T | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    const found = choices.find((choice) => choice === value);
    if (found !== undefined) return found;
    throw this.wrong(name, `give ${choices.join(', ')}`);
  }

  /** @throws ConfigError when the value is no whole number */
  integer(name: string): number | undefined {
    const value = this.get(name)?.trim();
    if (value === undefined) return undefined;
    if (/^-?\d{1,9}$/.test(value)) return Number(value);
    throw this.wrong(name, 'give a whole number');
  }

  /** Without the value: it may be a part of a password that was not encoded. */
  wrong(name: string, instead: string): ConfigError {
    return new ConfigError(`${this.origin(name)} has a wrong value; ${instead}`);
  }
}

/**
 * Reads libpq's parameters: from the URI, then for what it leaves out from the PG* variables. What is empty
 * counts as not given.
 *
 * @param variable where the URI comes from, for errors
 * @throws ConfigError for a URI that cannot be read, for a parameter that libpq does not know, and for one
 *   that this program does not have. No message has a value of the URI in it.
 */
export function readParameters(
  uri: string | undefined,
  env: NodeJS.ProcessEnv,
  variable: string,
): Parameters {
  const given = new Map<string, Given>();
  const add = (name: string, value: string | undefined, origin: string): void => {
    if (value === undefined || value === '' || given.has(name)) return;
    given.set(name, { value, origin });
  };
  for (const [name, value] of uri ? readUri(uri, variable) : []) {
    add(name, value, `${name} of ${variable}`);
  }
  for (const [name, { env: source }] of PARAMETERS) {
    if (source !== undefined) add(name, env[source], source);
  }
  // Before sslmode there was only this.
  if (env['PGREQUIRESSL']?.startsWith('1')) add('sslmode', 'require', 'PGREQUIRESSL');
  for (const [name, { value, origin }] of given) refuse(name, value, origin);
  return new Parameters(given);
}

function readUri(uri: string, variable: string): UriParameters {
  let parsed: UriParameters;
  try {
    parsed = parseUri(uri);
  } catch (error) {
    if (!(error instanceof UriError)) throw error;
    throw new ConfigError(`${variable} ${error.message}; give ${FORM}, special characters as %xx`);
  }
  const given = new Map(parsed);
  // The spelling of JDBC, which libpq takes as well.
  if (given.get('ssl') === 'true') {
    given.delete('ssl');
    given.set('sslmode', 'require');
  }
  for (const name of given.keys()) {
    if (PARAMETERS.has(name)) continue;
    // What follows an unencoded ? of a password looks like a parameter.
    const query = uri.slice(uri.indexOf('?'));
    const shown = /^\w{1,40}$/.test(name) && !query.includes('@') ? ` "${name}"` : '';
    throw new ConfigError(
      `${variable} has a parameter${shown} that libpq does not know; correct its name or leave it out`,
    );
  }
  return given;
}

function refuse(name: string, value: string, origin: string): void {
  const refusal = PARAMETERS.get(name)?.refused;
  if (refusal === undefined || refusal.harmless.includes(value)) return;
  const but = refusal.harmless.length === 0 ? '' : ` other than ${refusal.harmless.join(' or ')}`;
  throw new ConfigError(
    `${origin} is set, and mpp-controller has no ${name}${but}; ${refusal.instead}`,
  );
}

const FORM = 'a URL such as postgresql://user@host:5432/database';

/** What a URI says, by the names of libpq's parameters; `host` and `port` may be lists. */
type UriParameters = ReadonlyMap<string, string>;

/** Why a URI cannot be read. Its message has no part of the URI in it. */
class UriError extends Error {
  override readonly name = 'UriError';
}

/**
 * Takes a connection URI apart as libpq does:
 * `postgresql://user:password@host:port,host:port/database?parameter=value`.
 *
 * Percent-encoding is undone in each part, and only then are lists split at their commas. A `+` is a `+`.
 * An empty part counts as not given.
 *
 * @throws UriError
 */
function parseUri(uri: string): UriParameters {
  const scheme = /^postgres(?:ql)?:\/\//.exec(uri);
  if (!scheme) throw new UriError('is not a connection URL');
  const rest = uri.slice(scheme[0].length);
  // As in libpq, the user ends at the first @ that comes before any slash.
  const [, credentials, place = ''] = /^(?:([^@/]*)@)?(.*)$/s.exec(rest) ?? [];
  const [, hosts = '', path, query] = /^([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(place) ?? [];
  const given = new Map<string, string>();
  const add = (name: string, raw: string | undefined): void => {
    if (raw !== undefined && raw !== '') given.set(name, decode(raw));
  };
  if (credentials !== undefined) {
    const [, user, password] = /^([^:]*)(?::(.*))?$/s.exec(credentials) ?? [];
    add('user', user);
    add('password', password);
  }
  const places = hosts.split(',').map(parseHost);
  add('host', places.map(({ host }) => host).join(','));
  // Of several hosts a missing port is the default, not that of PGPORT: `a,b` gives `,`.
  add('port', places.map(({ port }) => port).join(','));
  add('dbname', path);
  for (const [name, value] of parseQuery(query)) given.set(name, value);
  return given;
}

function parseHost(text: string): { host: string; port: string } {
  if (text.startsWith('[')) {
    const match = /^\[([^\]]+)\](?::(.*))?$/.exec(text);
    if (!match) throw new UriError('has an IPv6 address whose brackets do not fit');
    return { host: match[1] ?? '', port: match[2] ?? '' };
  }
  const [, host = '', port = ''] = /^([^:]*)(?::(.*))?$/.exec(text) ?? [];
  return { host, port };
}

function parseQuery(query: string | undefined): [string, string][] {
  if (query === undefined || query === '') return [];
  return query.split('&').map((part) => {
    const pieces = part.split('=');
    const [name, value] = pieces;
    if (name === undefined || value === undefined || pieces.length > 2) {
      throw new UriError('has a parameter that is not of the form name=value');
    }
    return [decode(name), decode(value)];
  });
}

function decode(text: string): string {
  let decoded: string;
  try {
    decoded = decodeURIComponent(text);
  } catch {
    throw new UriError('has a % that begins no %xx');
  }
  if (decoded.includes('\0')) throw new UriError('has a %00, which nothing can have');
  return decoded;
}
