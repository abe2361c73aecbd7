import { Command } from 'commander';
import { packageVersion } from '../package-root.js';
import { bootstrapCommand } from './bootstrap.js';
import { completionCommand } from './completion.js';
import { configCommand } from './config.js';
import { doctorCommand } from './doctor.js';
import { EXIT, endingOf, endingOfHook, isHook } from './exit.js';
import { gucsCommand } from './gucs.js';
import { historyCommand } from './history.js';
import { hookCommand } from './hook.js';
import { maintenanceCommand } from './maintenance.js';
import { migrateCommand } from './migrate.js';
import { notifyCommand } from './notify.js';
import { reportCommand } from './report.js';
import { runCommand } from './run.js';
import { settingsHelp, type Io } from './flags.js';
import { statusCommand } from './status.js';
import { restartCommand, switchoverCommand } from './switchover.js';
import { systemdCommand } from './systemd.js';
import { cancelCommand, explainCommand, releaseCommand, waitCommand } from './tasks.js';
import { uninstallCommand } from './uninstall.js';

/**
 * Runs one command line.
 *
 * @param args without the names of node and of the script
 * @returns the exit code; nothing is thrown
 */
export async function main(args: readonly string[], io: Io): Promise<number> {
  const ofHook = isHook(args);
  const program = createProgram(io, ofHook);
  try {
    await program.parseAsync(args, { from: 'user' });
    return EXIT.ok;
  } catch (error) {
    const { exitCode, line } = ofHook ? endingOfHook(error) : endingOf(error);
    if (line !== null) io.complain(`mpp-controller: ${line}`);
    return exitCode;
  }
}

/** In the order of the help. */
const COMMANDS: readonly ((io: Io) => Command)[] = [
  runCommand,
  migrateCommand,
  bootstrapCommand,
  gucsCommand,
  notifyCommand,
  reportCommand,
  hookCommand,
  switchoverCommand,
  restartCommand,
  statusCommand,
  doctorCommand,
  waitCommand,
  historyCommand,
  explainCommand,
  cancelCommand,
  releaseCommand,
  maintenanceCommand,
  uninstallCommand,
  configCommand,
  systemdCommand,
  completionCommand,
];

/** @param ofHook commander's own complaints are not printed: a hook has one line, which says the same. */
function createProgram(io: Io, ofHook: boolean): Command {
  const program = new Command('mpp-controller')
    .description(
      'Keeps pg_dist_node of a Citus coordinator right through failovers, driven by plain SQL.',
    )
    .version(packageVersion())
    .addHelpText('after', () => `\n${settingsHelp()}`);
  const commands = COMMANDS.map((create) => create(io));
  for (const command of [program, ...commands]) configure(command, io, ofHook);
  for (const command of commands) {
    program.addCommand(command);
    command
      .showHelpAfterError(`Try mpp-controller ${command.name()} --help.`)
      .addHelpText('after', '\nConnects by DATABASE_URL or the PG* variables.');
  }
  return program;
}

function configure(command: Command, io: Io, ofHook: boolean): void {
  command
    .exitOverride()
    .configureHelp({ helpWidth: 120, showGlobalOptions: false })
    .configureOutput({
      writeOut: (text) => io.print(text.trimEnd()),
      writeErr: (text) => {
        if (!ofHook) io.complain(text.trimEnd());
      },
      outputError: (text, write) => write(`mpp-controller: ${text.replace(/^error: /, '')}`),
    });
}
