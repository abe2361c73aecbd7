import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

/** Prints each datagram that reaches a socket. */
const READER = `
import socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
print("listening", flush=True)
while True:
    print(listener.recv(4096).decode(), flush=True)
`;

const missing = ['systemd-notify', 'python3'].filter(
  (program) => spawnSync(program, ['--version']).error !== undefined,
);
if (missing.length > 0) console.warn(`no test with systemd-notify: no ${missing.join(', ')}`);

describe.skipIf(missing.length > 0)('a controller that systemd has started', () => {
  let h: Harness;
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'mpp-notify-'));
    h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
  });
  afterAll(async () => {
    await h.stop();
    await rm(folder, { recursive: true });
  });

  it('says what it is and that it goes on, also while PostgreSQL does not, and that it stops', async () => {
    const socket = join(folder, 'notify');
    const reader = spawn('python3', ['-c', READER, socket], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    reader.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
    const says = async (text: string): Promise<void> =>
      waitFor(`it to say ${text}`, () => Promise.resolve(said.includes(text) || undefined)).then(
        () => undefined,
      );
    try {
      await says('listening');
      const env = { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '200000' };
      const controller = await h.startController(env);
      await says('STATUS=active');
      await says('READY=1');
      await says('WATCHDOG=1');
      await h.cluster.coordinator.stop('immediate');
      await says('STATUS=waiting for the coordinator');
      said = '';
      await says('WATCHDOG=1');
      await h.cluster.coordinator.start();
      await says('STATUS=active');
      expect(await controller.end()).toBe(0);
      await says('STOPPING=1');
      expect(said).not.toContain('READY=1');
    } finally {
      reader.kill();
      await h.reconnect();
    }
  });

  it('is ready although the coordinator is down when it starts', async () => {
    const socket = join(folder, 'second');
    const reader = spawn('python3', ['-c', READER, socket], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    reader.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
    try {
      await waitFor('the reader', () => Promise.resolve(said.includes('listening')));
      await h.cluster.coordinator.stop('fast');
      const controller = h.spawnController({ NOTIFY_SOCKET: socket });
      await waitFor('READY=1', () => Promise.resolve(said.includes('READY=1')));
      expect(said).toContain('STATUS=waiting for the coordinator; see the log');
      await controller.end();
    } finally {
      reader.kill();
      await h.cluster.coordinator.start();
      await h.reconnect();
    }
  });

  it('has a unit file from the command, and a wrong user is refused', async () => {
    const unit = await runCli(['systemd', '--user', 'dba']);
    expect(unit).toMatchObject({ exitCode: 0, stderr: '' });
    expect(unit.stdout).toMatch(/^User=dba$/m);
    expect(await runCli(['systemd', '--user', 'a b'])).toMatchObject({ exitCode: 2, stdout: '' });
  });
});
