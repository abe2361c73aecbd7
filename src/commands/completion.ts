import { Argument, Command, type Option } from 'commander';
import type { Io } from './flags.js';

const SHELLS = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof SHELLS)[number];

/** What a shell may complete after the name of the program. */
export interface Completions {
  readonly commands: readonly CompletedCommand[];
}

interface CompletedCommand {
  readonly name: string;
  readonly description: string;
  /** Long flags, and the words of arguments that have a choice. */
  readonly words: readonly string[];
}

export function completionCommand(io: Io): Command {
  const command = new Command('completion')
    .description('print what makes a shell complete commands and options')
    .addArgument(new Argument('<shell>', 'which shell').choices(SHELLS))
    .addHelpText(
      'after',
      `
bash  source <(mpp-controller completion bash)       in ~/.bashrc
zsh   source <(mpp-controller completion zsh)        in ~/.zshrc, after compinit
fish  mpp-controller completion fish | source        in ~/.config/fish/config.fish`,
    );
  return command.action((shell: Shell) => {
    const program = command.parent;
    if (program === null) throw new Error('completion is a command of a program');
    io.print(SCRIPTS[shell](completionsOf(program)));
  });
}

/** Reads the tree of commands. Pure. */
export function completionsOf(program: Command): Completions {
  const commands = program.commands.map((one) => ({
    name: one.name(),
    description: one.description(),
    words: [
      ...one.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []),
      ...one.options.flatMap((option: Option) => option.long ?? []),
      '--help',
    ],
  }));
  return { commands };
}

const SCRIPTS: Readonly<Record<Shell, (completions: Completions) => string>> = { bash, zsh, fish };

function bash({ commands }: Completions): string {
  const cases = commands.map(({ name, words }) => `    ${name}) words='${words.join(' ')}' ;;`);
  const names = commands.map(({ name }) => name).join(' ');
  return `_mpp_controller() {
  local words
  case \${COMP_WORDS[1]} in
${cases.join('\n')}
    *) words='${names} --help --version' ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words='${names} --help --version'; fi
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _mpp_controller mpp-controller`;
}

function zsh({ commands }: Completions): string {
  const names = commands.map(
    ({ name, description }) => `    '${name}:${quoted(description.replaceAll(':', ' -'))}'`,
  );
  const cases = commands.map(({ name, words }) => `    ${name}) compadd -- ${words.join(' ')} ;;`);
  return `#compdef mpp-controller
_mpp_controller() {
  local -a names=(
${names.join('\n')}
  )
  if (( CURRENT == 2 )); then
    _describe command names
    return
  fi
  case $words[2] in
${cases.join('\n')}
  esac
}
compdef _mpp_controller mpp-controller`;
}

function fish({ commands }: Completions): string {
  const lines = commands.flatMap(({ name, description, words }) => [
    `complete -c mpp-controller -n __fish_use_subcommand -a ${name} -d '${quoted(description)}'`,
    ...words.map((word) =>
      word.startsWith('--')
        ? `complete -c mpp-controller -n '__fish_seen_subcommand_from ${name}' -l ${word.slice(2)}`
        : `complete -c mpp-controller -n '__fish_seen_subcommand_from ${name}' -a ${word}`,
    ),
  ]);
  return ['complete -c mpp-controller -f', ...lines].join('\n');
}

/** Within single quotes of a shell. */
function quoted(text: string): string {
  return text.replaceAll("'", "'\\''");
}
