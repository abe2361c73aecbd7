import { spawnSync } from 'node:child_process';
import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { completionsOf } from '../../src/commands/completion.js';
import { main } from '../../src/commands/program.js';

async function script(shell: string): Promise<string> {
  const lines: string[] = [];
  const exitCode = await main(['completion', shell], {
    env: {},
    print: (text) => lines.push(text),
    complain: (text) => lines.push(text),
  });
  expect(exitCode).toBe(0);
  return lines.join('\n');
}

/** What bash offers for a line that ends where the cursor is. */
async function completed(...words: string[]): Promise<string[]> {
  const line = words.map((word) => `'${word}'`).join(' ');
  const run = `${await script('bash')}
COMP_WORDS=(${line}); COMP_CWORD=${words.length - 1}; _mpp_controller; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr, status } = spawnSync('bash', ['-c', run], { encoding: 'utf8' });
  expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
  return stdout.trim().split('\n');
}

describe('completion', () => {
  it('has the commands, their flags, and the words that an argument may be', () => {
    const program = new Command('p').addCommand(
      new Command('one').description('does it').option('--group <id>', 'of a group'),
    );
    expect(completionsOf(program)).toEqual({
      commands: [{ name: 'one', description: 'does it', words: ['--group', '--help'] }],
    });
  });

  it('completes commands and flags in a real bash', async () => {
    expect(await completed('mpp-controller', 'swi')).toEqual(['switchover']);
    expect(await completed('mpp-controller', 'maintenance', 'o')).toEqual(['on', 'off']);
    expect(await completed('mpp-controller', 'history', '--gr')).toEqual(['--group']);
    expect(await completed('mpp-controller', '')).toContain('doctor');
  });

  it.each(['zsh', 'fish'])(
    'is what %s takes without a word, where it is installed',
    async (shell) => {
      const text = await script(shell);
      expect(text).toContain('switchover');
      const { error, stderr, status } = spawnSync(shell, ['-n'], { input: text, encoding: 'utf8' });
      if (error === undefined) expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
    },
  );
});
