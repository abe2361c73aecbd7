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
import { isStandby, readPrimary } from './nodes.js';
import { type Plan, type Step, Switchover } from './switchover-steps.js';

const USES = ['schema', 'databases'] as const;

interface Flags {
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
    .argument('<groupid>', 'group in pg_dist_node; 0 is the coordinator, which this is not for')
    .option('--to <host:port>', 'the standby that is to become the primary (required)')
    .option('--stop <command>', 'stops the old primary, and returns when it is stopped (required)')
    .option(
      '--promote <command>',
      'promotes the standby, and returns when it takes writes (required)',
    );
  return addCommon(io, command, (flags) => {
    const to = addressOf(required('--to', 'host:port of the standby', flags.to));
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
    .argument('<groupid>', 'group in pg_dist_node; 0 is the coordinator, which this is not for')
    .option(
      '--cmd <command>',
      'restarts the primary, and returns when it takes connections again (required)',
    );
  return addCommon(io, command, (flags) => {
    const line = required('--cmd', 'the command that restarts the primary', flags.cmd);
    return { to: null, commands: [{ step: 'restart', line, isAnnounced: false }] };
  });
}

/** What the flags of a command ask for. */
interface Order {
  /** null for the present primary. */
  readonly to: Address | null;
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
  return addSettings(command, USES).action(async (groupid: string) => {
    const settings = readSettings(io, command, USES);
    const flags = command.opts<Flags>();
    const group = integer('<groupid>', groupid, 1, 2_147_483_647);
    const { to, commands } = orderOf(flags);
    const common = {
      timeoutMs: duration('--timeout', flags.timeout, 1),
      cooldownMs: duration('--cooldown', flags.cooldown, 0),
      pause: flags.pause ?? null,
    };
    const from = await readPrimary(settings, group);
    if (to !== null) await checkTarget(io, settings, from, to);
    const plan: Plan = { groupid: group, from, to: to ?? from, commands, ...common };
    await carryOut(io, settings, plan, flags);
  });
}

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

async function carryOut(io: Io, settings: Settings, plan: Plan, flags: Flags): Promise<void> {
  const isJson = flags.json === true;
  const say = isJson ? (): void => undefined : io.print;
  for (const line of describe(plan)) say(line);
  if (flags.dryRun === true) {
    say('nothing was done: --dry-run');
    if (isJson) io.print(JSON.stringify(resultOf(plan, 'dry-run', [])));
    return;
  }
  if (flags.yes !== true && !(await io.confirm?.('Go on?'))) {
    throw new CommandError(EXIT.usage, 'nothing was changed: give --yes, or confirm on a terminal');
  }
  const switchover = new Switchover({ io, settings, plan, say });
  try {
    await switchover.run();
    if (isJson) io.print(JSON.stringify(resultOf(plan, 'done', switchover.steps)));
  } catch (error) {
    const isIncomplete = error instanceof CommandError && error.exitCode === EXIT.incomplete;
    const outcome = isIncomplete ? 'incomplete' : 'unchanged';
    if (isJson) io.print(JSON.stringify(resultOf(plan, outcome, switchover.steps)));
    throw error;
  }
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

/** What --json prints. Times are in milliseconds. */
function resultOf(
  { groupid, from, to }: Plan,
  outcome: 'done' | 'unchanged' | 'incomplete' | 'dry-run',
  steps: readonly Step[],
): object {
  return { group: groupid, from: formatAddress(from), to: formatAddress(to), outcome, steps };
}
