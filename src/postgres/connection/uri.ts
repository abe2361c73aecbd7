/** What a URI says, by the names of libpq's parameters; `host` and `port` may be lists. */
export type UriParameters = ReadonlyMap<string, string>;

/** Why a URI cannot be read. Its message has no part of the URI in it. */
export class UriError extends Error {
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
export function parseUri(uri: string): UriParameters {
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
