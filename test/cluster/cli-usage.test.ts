import { describe, expect, it } from 'vitest';
import { builtCli, runCli, type CommandResult } from '../kit/cli.js';

/** Wrong usage is found before any server is asked. */
async function cli(args: string, env: NodeJS.ProcessEnv = {}) {
  return runCli(args.split(' '), { DATABASE_URL: 'postgresql://u@127.0.0.1:1/d', ...env });
}

/** Expects one line on standard error, without a stack, and returns it. */
function complaint({ stderr }: CommandResult): string {
  expect(stderr).toMatch(/^mpp-controller: [^\n]+\n$/);
  return stderr.slice('mpp-controller: '.length, -1);
}

describe('usage and settings', () => {
  it.each(['', 'nope', 'status --nope', 'notify before_demote', 'notify before_demote --group 1'])(
    'ends "%s" with 2',
    async (args) => {
      const result = await cli(args);
      expect(result).toMatchObject({ exitCode: 2, stdout: '' });
      expect(result.stderr).not.toBe('');
    },
  );

  it.each([
    ['run --max-holds 0', '--max-holds cannot be "0"'],
    ['notify before_demote --group one --host w1', '--group cannot be "one"'],
    ['notify before_demote --group 1 --host w1 --timeout 10', '--timeout: "10" has no unit'],
    [
      'notify after_promote --group 1 --host w1 --secondary w2:1 --no-secondaries',
      '--secondary and --no-secondaries',
    ],
    ['notify suspect --group 1 --host w1 --port 99999', '--port cannot be "99999"'],
    ['notify suspect --group 1 --host w1 --port 0', '--port cannot be "0"'],
    ['notify suspect --group -1 --host w1', '--group cannot be "-1"'],
    ['notify suspect --group 3000000000 --host w1', '--group cannot be'],
    ['notify suspect --group 1', '--host is missing'],
    ['notify suspect --host w1', '--group is missing'],
    ['notify bogus --group 1 --host w1', 'the event cannot be "bogus"'],
    ['notify suspect --group 1 --host w1 --secondary w2', '--secondary cannot be "w2"'],
    ['notify suspect --group 1 --host w1 --secondary w2:0', '--secondary cannot be "w2:0"'],
    ['notify suspect --group 1 --host w1 --timeout 2d', '--timeout cannot be "2d"'],
    ['notify suspect --group 1 --host w1 --timeout 0s', '--timeout cannot be "0s"'],
  ])('ends "%s" with 2 and one line', async (args, line) => {
    const result = await cli(args);
    expect(result.exitCode).toBe(2);
    expect(complaint(result)).toContain(line);
  });

  it.each([
    ['notify suspect --grup 1 --host w1', "unknown option '--grup'", 'Did you mean --group?'],
    ['notify suspect --group 1 --host w1 --pause reads', '--pause', 'writes, all, none'],
  ])('names the right option for "%s"', async (args, option, choice) => {
    const result = await cli(args);
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toContain(option);
    expect(result.stderr).toContain(choice);
  });

  it('names a wrong variable', async () => {
    const result = await cli('status', { MPP_HEARTBEAT: 'often' });
    expect(result.exitCode).toBe(2);
    expect(complaint(result)).toContain('MPP_HEARTBEAT cannot be "often"');
  });

  it('shows every setting with its variable, its flag and its default', async () => {
    const { exitCode, stdout } = await cli('--help');
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/MPP_MAX_HOLDS, --max-holds .*\(default unlimited\)/);
    expect(stdout).toContain('DATABASE_URL');
    expect((await cli('run --help')).stdout).toMatch(/--heartbeat <value> .*MPP_HEARTBEAT/);
  });
});

describe('output that its reader closes, or that cannot be written', () => {
  const cli = builtCli().join(' ');
  const shell = (script: string): Promise<CommandResult> => runCli(['-c', script], {}, ['sh']);

  it('ends quietly when the reader has seen enough', async () => {
    const { stdout, stderr } = await shell(`${cli} --help | head -n 1`);
    expect({ stdout: stdout.split('\n').length, stderr }).toEqual({ stdout: 2, stderr: '' });
    expect((await shell(`${cli} --help | true`)).stderr).toBe('');
    expect(await shell(`${cli} --help >&-`)).toMatchObject({ stderr: '' });
  });

  it('is said in one line, with exit code 1', async () => {
    const { exitCode, stderr } = await shell(`${cli} --help > /dev/full`);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^mpp-controller: .*no space left on device.*\n$/i);
  });
});
