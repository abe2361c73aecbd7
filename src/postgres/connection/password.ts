import { homedir } from 'node:os';
import { join } from 'node:path';
import { readFileSync, statSync } from 'node:fs';
import { ConfigError } from '../../errors.js';

/** What a line of a password file is looked up by. */
export interface Login {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
}

/** Unless PGPASSFILE or `passfile` names another. */
export function defaultPasswordFile(): string {
  return homeFile('.pgpass');
}

/**
 * The password of a login from a password file, as libpq reads it. The file is read each time, so that a
 * changed password is found without a restart.
 *
 * @throws ConfigError when there is none: only called when the server asks for one.
 */
export function passwordFromFile(file: string, login: Login): string {
  const { text, trouble } = readPasswordFile(file);
  const password = text === undefined ? undefined : findPassword(text, login);
  if (password !== undefined) return password;
  const why = trouble ?? `${file} has no line for it`;
  throw new ConfigError(
    `the server asks for the password of ${login.user}, and none is given; ` +
      `put it into DATABASE_URL, PGPASSWORD or ${file} (${why})`,
  );
}

function readPasswordFile(file: string): { text?: string; trouble?: string } {
  try {
    const { mode } = statSync(file);
    if (process.platform !== 'win32' && (mode & 0o077) !== 0) {
      const octal = (mode & 0o777).toString(8).padStart(4, '0');
      return { trouble: `${file} is ignored because its mode is ${octal}; chmod 0600 ${file}` };
    }
    return { text: readFileSync(file, 'utf8') };
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    if (code === 'ENOENT') return { trouble: `${file} does not exist` };
    return { trouble: `${file} cannot be read: ${code}` };
  }
}

/** The password in the first line that fits: `host:port:database:user:password`, `*` fits all. */
export function findPassword(text: string, login: Login): string | undefined {
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith('#')) continue;
    const [host, port, database, user, password] = splitLine(line);
    if (
      hostFits(host, login.host) &&
      fits(port, String(login.port)) &&
      fits(database, login.database) &&
      fits(user, login.user) &&
      password !== undefined &&
      password !== ''
    ) {
      return password;
    }
  }
  return undefined;
}

/** At colons that no backslash protects; what follows the fourth is the password, colons and all. */
function splitLine(line: string): string[] {
  const [, ...fields] = LINE.exec(line) ?? [];
  return fields.map((text, index) =>
    text === '*' && index < fields.length - 1 ? ANY : text.replace(/\\(.)/g, '$1'),
  );
}

const FIELD = String.raw`((?:\\.|[^\\:])*)`;
const LINE = new RegExp(`^${FIELD}:${FIELD}:${FIELD}:${FIELD}:(.*)$`);

/** No name can have it. An escaped star is the name of one character. */
const ANY = '\0';

function fits(field: string | undefined, value: string): boolean {
  return field === ANY || field === value;
}

/** The folders where servers put their socket by default are `localhost` for libpq. */
const DEFAULT_SOCKETS = ['/tmp', '/var/run/postgresql', '/run/postgresql'];

function hostFits(field: string | undefined, host: string): boolean {
  return fits(field, host) || (DEFAULT_SOCKETS.includes(host) && field === 'localhost');
}

/** The path of a file below the user's home; where there is no home, of one that does not exist. */
export function homeFile(...parts: readonly string[]): string {
  try {
    return join(homedir(), ...parts);
  } catch {
    return join('/nonexistent', ...parts);
  }
}
