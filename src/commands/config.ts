import { Command } from 'commander';
import {
  givenSetting,
  loadSettings,
  type Setting,
  settingProblem,
  SETTINGS,
  type SettingName,
  unknownVariables,
} from '../config/settings.js';
import { ConfigError } from '../errors.js';
import { CommandError, EXIT } from './exit.js';
import { addSettings, flagsOf, type Io } from './flags.js';
import { formatTable } from './output.js';

const ALL = Object.keys(SETTINGS) as SettingName[];

/** They may carry a password. */
const SECRETS = ['DATABASE_URL', 'MPP_NODE_URL', 'MPP_PATRONI_AUTH', 'MPP_AUTHINFO', 'PGPASSWORD'];
/** What DATABASE_URL leaves out is taken from these. */
const CONNECTION = ['PGHOST', 'PGHOSTADDR', 'PGPORT', 'PGUSER', 'PGDATABASE', 'PGPASSFILE'];

/** One setting, as it is and as it came. */
interface Shown {
  readonly name: string;
  /** As it was written; a password in it is replaced. */
  readonly value: string;
  readonly origin: 'flag' | 'environment' | 'default' | 'unknown';
  /** What is wrong with it; null where nothing is. */
  readonly problem: string | null;
}

export function configCommand(io: Io): Command {
  const command = new Command('config')
    .description('show every setting, where it comes from, and what is wrong with it')
    .argument('[what]', 'show', 'show')
    .option('--json', 'print a JSON array');
  return addSettings(command, ALL).action((what: string) => {
    if (what !== 'show') throw new ConfigError(`config cannot ${JSON.stringify(what)}; give show`);
    const shown = showSettings(io.env, flagsOf(command, ALL));
    if (command.opts<{ json?: true }>().json === true) io.print(JSON.stringify(shown, null, 2));
    else {
      const rows = shown.map((one) => [one.name, one.value, one.origin, one.problem ?? '']);
      io.print(formatTable(['SETTING', 'VALUE', 'ORIGIN', 'PROBLEM'], rows, ''));
    }
    const wrong = shown.filter(({ problem }) => problem !== null).map(({ name }) => name);
    if (wrong.length > 0) {
      throw new CommandError(EXIT.usage, `${wrong.join(', ')}: see the column PROBLEM`);
    }
  });
}

/** Pure. Each problem is named, not only the first. */
export function showSettings(
  env: NodeJS.ProcessEnv,
  flags: Readonly<Record<string, string | undefined>>,
): Shown[] {
  const settings = Object.values<Setting<unknown>>(SETTINGS).map((setting): Shown => {
    const given = givenSetting(setting, env, flags);
    const problem = settingProblem(setting, given) ?? null;
    return { name: setting.env, value: maskLogins(given.text), origin: given.origin, problem };
  });
  const variables = [...CONNECTION, ...SECRETS].flatMap((name): Shown[] => {
    const value = env[name];
    if (!value) return [];
    const origin = 'environment';
    return [{ name, value: SECRETS.includes(name) ? mask(value) : value, origin, problem: null }];
  });
  const unknown = unknownVariables(env).map((name): Shown => {
    const problem = 'no setting has this name; is it misspelt?';
    return { name, value: mask(env[name] ?? ''), origin: 'unknown', problem };
  });
  const all = [...variables, ...settings, ...unknown];
  if (all.some(({ problem }) => problem !== null)) return all;
  return addProblem(all, env, flags);
}

/** What is wrong with the connection, or with settings that do not fit each other. */
function addProblem(
  shown: Shown[],
  env: NodeJS.ProcessEnv,
  flags: Readonly<Record<string, string | undefined>>,
): Shown[] {
  try {
    loadSettings(env, flags);
    return shown;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const name = /^[A-Z_]+/.exec(error.message)?.[0] ?? 'DATABASE_URL';
    const problem = error.message;
    if (!shown.some((one) => one.name === name)) {
      return [{ name, value: '', origin: 'default', problem }, ...shown];
    }
    return shown.map((one) => (one.name === name ? { ...one, problem } : one));
  }
}

/** Of a list of URLs, such as MPP_PATRONI: one with a login is refused, but must not be shown either. */
function maskLogins(value: string): string {
  return value.replace(/\/\/[^,;\s]*@/g, '//***@');
}

/** Keeps what is no secret of a connection URL: user, hosts, port and database. */
function mask(value: string): string {
  // What stands before the last @ is the login, also where its password has such a character.
  const url = /^([a-z]+:\/\/)(?:(.*)@)?([^?@]*)(\?.*)?$/is.exec(value);
  if (url === null) return '(set, not shown)';
  const [, scheme = '', login, rest = '', query] = url;
  const [user = ''] = /^[^:@/?]*/.exec(login ?? '') ?? [];
  const shown = login === undefined ? '' : `${user}${login === user ? '' : ':***'}@`;
  return `${scheme}${shown}${rest}${query === undefined ? '' : '?(parameters not shown)'}`;
}
