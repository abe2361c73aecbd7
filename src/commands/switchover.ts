import { Command } from 'commander';
import { formatAddress, isHost, parseAddress, sameAddress, type Address } from '../address.js';
import { formatDuration } from '../config/formats.js';
import type { Settings } from '../config/settings.js';
import { ConfigError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { isLoginRefused, sqlState } from '../postgres/sqlstate.js';
import { CommandError, EXIT } from './exit.js';
import {
  addSettings,
  cooldownOption,
  duration,
  integer,
  type Io,
  pauseOption,
  readSettings,
  required,
} from './flags.js';
import { isStandby, readPrimary, readWorkerGroups } from './nodes.js';
import { type Plan, type Step, Switchover } from './switchover-steps.js';

const USES = ['schema', 'databases'] as const;

interface Flags {
  readonly all?: true;
  readonly to?: string;
  readonly stop?: string;
  readonly promote?: string;
  readonly cmd?: string;
  readonly timeout: string;
  readonly cooldown?: string;
  readonly pause?: string;
  readonly yes?: true;
  readonly dryRun?: true;
  readonly json?: true;
}

export function switchoverCommand(io: Io): Command {
  const command = new Command('switchover')
    .description(
      'move the primary of a group: hold its traffic, run your commands that stop the old primary and promote ' +
        'the new one, move its row in pg_dist_node',
    )
    .argument('[groupid]', GROUP)
    .option('--all', 'every worker group, one after the other, each to its registered secondary')
    .option(
      '--to <host:port>',
      'the standby that is to become the primary (required without --all)',
    )
    .option('--stop <command>', 'stops the old primary, and returns when it is stopped (required)')
    .option(
      '--promote <command>',
      'promotes the standby, and returns when it takes writes (required)',
    );
  return addCommon(io, command, (flags) => {
    const isAll = flags.all === true;
    if (isAll && flags.to !== undefined) {
      throw new ConfigError('--to and --all exclude each other; give one of them');
    }
    const to = isAll
      ? 'secondary'
      : addressOf(required('--to', 'host:port of the standby', flags.to));
    const stop = required('--stop', 'the command that stops the old primary', flags.stop);
    const promote = required('--promote', 'the command that promotes the standby', flags.promote);
    return {
      to,
      commands: [
        { step: 'stop', line: stop, isAnnounced: false },
        { step: 'promote', line: promote, isAnnounced: true },
      ],
    };
  });
}

export function restartCommand(io: Io): Command {
  const command = new Command('restart')
    .description('restart the primary of a group: hold its traffic while your command runs')
    .argument('[groupid]', GROUP)
    .option('--all', 'every worker group, one after the other')
    .option(
      '--cmd <command>',
      'restarts the primary, and returns when it takes connections again (required)',
    );
  return addCommon(io, command, (flags) => {
    const line = required('--cmd', 'the command that restarts the primary', flags.cmd);
    return { to: 'same', commands: [{ step: 'restart', line, isAnnounced: false }] };
  });
}

/** What the flags of a command ask for. */
interface Order {
  /** `same`: the present primary. `secondary`: that of the group which is registered. */
  readonly to: Address | 'same' | 'secondary';
  readonly commands: Plan['commands'];
}

function addCommon(io: Io, command: Command, orderOf: (flags: Flags) => Order): Command {
  command
    .option('--timeout <duration>', 'how long the hold may last', '60s')
    .addOption(cooldownOption())
    .addOption(pauseOption(['writes', 'all']))
    .option('--yes', 'do not ask')
    .option('--dry-run', 'say what would be done, and do nothing')
    .option('--json', 'print the result as one JSON object')
    .addHelpText('after', `\n${MANUAL}`);
  return addSettings(command, USES).action(async (groupid: string | undefined) => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    if (groupid !== undefined && flags.all === true) {
      throw new ConfigError('<groupid> and --all exclude each other; give one of them');
    }
    const order = orderOf(flags);
    const common = {
      commands: order.commands,
      timeoutMs: duration('--timeout', flags.timeout, 1),
      cooldownMs: duration('--cooldown', flags.cooldown, 0),
      pause: flags.pause ?? null,
    };
    const moves =
      flags.all === true
        ? await movesOfAll(settings, order)
        : [await moveOf(settings, required('<groupid>', 'a group, or --all', groupid), order)];
    if (order.to !== 'same') {
      for (const { from, to } of moves) await checkTarget(io, settings, from, to);
    }
    const plans = moves.map((move): Plan => ({ ...move, ...common }));
    await carryOut(io, settings, plans, flags);
  });
}

type Move = Pick<Plan, 'groupid' | 'from' | 'to'>;

async function moveOf(settings: Settings, text: string, { to }: Order): Promise<Move> {
  const groupid = integer('<groupid>', text, 1, 2_147_483_647);
  const from = await readPrimary(settings, groupid);
  return { groupid, from, to: typeof to === 'string' ? from : to };
}

/** @throws CommandError where a group has no secondary to move to. */
async function movesOfAll(settings: Settings, { to }: Order): Promise<Move[]> {
  const groups = await readWorkerGroups(settings);
  const without = groups.filter(({ secondary }) => secondary === null);
  if (groups.length === 0) {
    throw new CommandError(EXIT.usage, 'nothing was changed: pg_dist_node has no worker group');
  }
  if (to === 'secondary' && without.length > 0) {
    const named = without.map(({ groupid }) => groupid).join(', ');
    throw new CommandError(
      EXIT.refused,
      `nothing was changed: no secondary is registered for group ${named}; move such a group by its id, with --to`,
    );
  }
  return groups.map(({ groupid, primary, secondary }) => ({
    ...{ groupid, from: primary },
    to: to === 'secondary' ? (secondary ?? primary) : primary,
  }));
}

const GROUP = 'group in pg_dist_node; 0 is the coordinator, which this is not for';

const MANUAL = `The commands run by /bin/sh, with MPP_GROUP, MPP_FROM_HOST, MPP_FROM_PORT, MPP_TO_HOST and MPP_TO_PORT set; what they
print goes to standard error. Ctrl-C puts back what was done, as far as the servers allow.

Exit codes:
  0  done
  1  anything else went wrong
  2  the same call fails until a person changes something: a wrong option, a missing right
  3  nothing was changed: the group could not be held, or the old primary was not stopped
  5  the database cannot be reached
  6  not complete: the old primary is stopped, or the new one promoted, and pg_dist_node does not say so yet; the last
     lines say how things stand and what to do`;

function addressOf(text: string): Address {
  const address = parseAddress(text.includes(':') ? text : `${text}:5432`);
  const { host, port } = address;
  if (isHost(host) && Number.isInteger(port) && port >= 1 && port <= 65_535) return address;
  throw new ConfigError(
    `--to cannot be ${JSON.stringify(text)}; give host:port, or [address]:port for IPv6`,
  );
}

/**
 * Asks the standby before anything is stopped for it. One that does not let this role log in is taken as it is:
 * the controller asks it again before its row moves.
 *
 * @throws CommandError when it is no standby that runs
 */
async function checkTarget(io: Io, settings: Settings, from: Address, to: Address): Promise<void> {
  const name = formatAddress(to);
  if (sameAddress(from, to)) {
    throw new CommandError(
      EXIT.refused,
      `nothing was changed: ${name} is the primary of the group already`,
    );
  }
  try {
    if (await isStandby(settings, to, ASK_MS)) return;
  } catch (error) {
    if (isLoginRefused(error) || sqlState(error) !== undefined) {
      io.complain(`${name} could not be asked whether it is a standby: ${errorText(error)}`);
      return;
    }
    throw new CommandError(
      EXIT.refused,
      `nothing was changed: ${name} does not answer (${errorText(error)}); start it, or name another standby`,
    );
  }
  throw new CommandError(
    EXIT.refused,
    `nothing was changed: ${name} is no standby, it takes writes; if it was promoted already, report that: ` +
      'mpp-controller notify after_promote',
  );
}

const ASK_MS = 3_000;

/** One after the other. The first that does not come to its end is the last. */
async function carryOut(
  io: Io,
  settings: Settings,
  plans: readonly Plan[],
  flags: Flags,
): Promise<void> {
  const say = flags.json === true ? (): void => undefined : io.print;
  for (const line of plans.flatMap(describe)) say(line);
  const results: Result[] = [];
  try {
    if (flags.dryRun === true) {
      say('nothing was done: --dry-run');
      results.push(...plans.map((plan) => resultOf(plan, 'dry-run', [])));
      return;
    }
    if (flags.yes !== true && !(await io.confirm?.('Go on?'))) {
      const how = 'give --yes, or confirm on a terminal';
      throw new CommandError(EXIT.usage, `nothing was changed: ${how}`);
    }
    for (const plan of plans) {
      if (plans.length > 1) say(`group ${plan.groupid}`);
      results.push(await runOne({ io, settings, plan, say }));
      const { error } = results.at(-1) ?? {};
      if (error !== undefined) throw withRest(error, plans.slice(results.length));
    }
  } finally {
    const shown = results.map(({ json }) => json);
    if (flags.json === true) io.print(JSON.stringify(flags.all === true ? shown : shown[0]));
  }
}

async function runOne(options: ConstructorParameters<typeof Switchover>[0]): Promise<Result> {
  const { plan } = options;
  const switchover = new Switchover(options);
  try {
    await switchover.run();
    return resultOf(plan, 'done', switchover.steps);
  } catch (error) {
    const isIncomplete = error instanceof CommandError && error.exitCode === EXIT.incomplete;
    const outcome = isIncomplete ? 'incomplete' : 'unchanged';
    return { ...resultOf(plan, outcome, switchover.steps), error };
  }
}

/** The same error, with the groups that were not begun. */
function withRest(error: unknown, rest: readonly Plan[]): unknown {
  if (!(error instanceof CommandError) || rest.length === 0) return error;
  const named = rest.map(({ groupid }) => groupid).join(', ');
  return new CommandError(error.exitCode, `${error.message}. Not begun: group ${named}`, error);
}

function describe({ groupid, from, to, commands, timeoutMs }: Plan): string[] {
  const what = sameAddress(from, to)
    ? `restart of ${formatAddress(from)}`
    : `${formatAddress(from)} -> ${formatAddress(to)}`;
  return [
    `group ${groupid}: ${what}; its traffic waits for ${formatDuration(timeoutMs)} at most`,
    ...commands.map(({ step, line }) => `  ${step.padEnd(8)} $ ${line}`),
  ];
}

interface Result {
  /** What --json prints. Times are in milliseconds. */
  readonly json: object;
  /** Why it did not come to its end. */
  readonly error?: unknown;
}

function resultOf(
  { groupid, from, to }: Plan,
  outcome: 'done' | 'unchanged' | 'incomplete' | 'dry-run',
  steps: readonly Step[],
): Result {
  const [old, next] = [formatAddress(from), formatAddress(to)];
  return { json: { group: groupid, from: old, to: next, outcome, steps } };
}
