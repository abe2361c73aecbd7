import { spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pino from 'pino';
import { describe, expect, it } from 'vitest';
import { ServiceManager, watchdogOf } from '../../src/commands/service-manager.js';
import { unitFile } from '../../src/commands/systemd.js';

const SOCKET = { NOTIFY_SOCKET: '/run/none' };
const silent = pino({ level: 'silent' });

function manager(env: NodeJS.ProcessEnv = SOCKET) {
  const sent: string[] = [];
  const clock = { now: 0 };
  const service = new ServiceManager({
    ...{ env, logger: silent, pollMs: 1_000 },
    now: () => clock.now,
    send: (assignments) => {
      sent.push(...assignments);
      return Promise.resolve();
    },
  });
  return { service, sent, clock };
}

describe('what systemd is notified of', () => {
  it('is each state in words, and once that the service is ready', async () => {
    const { service, sent } = manager();
    const observer = service.observe(undefined);
    observer.stateIs('standby');
    await service.stop();
    observer.stateIs('active');
    await service.stop();
    service.stopping();
    await service.stop();
    expect(sent).toEqual(['STATUS=standing by', 'READY=1', 'STATUS=active', 'STOPPING=1']);
  });

  it('names the databases where there are several', async () => {
    const { service, sent } = manager();
    const [one] = [service.observe('one'), service.observe('two')];
    one.stateIs('active');
    await service.stop();
    expect(sent).toContain('STATUS=one: active; two: waiting for the coordinator; see the log');
  });

  it('is a ping, for as long as each loop goes round, and again once it does', async () => {
    const { service, sent, clock } = manager();
    const observer = service.observe(undefined);
    observer.stateIs('active');
    await service.stop();
    const pings = async (at: number): Promise<number> => {
      sent.length = 0;
      clock.now = at;
      service.ping();
      await service.stop();
      return sent.filter((text) => text === 'WATCHDOG=1').length;
    };
    expect(await pings(61_000)).toBe(1);
    expect(await pings(61_001)).toBe(0);
    observer.turned();
    expect(await pings(61_002)).toBe(1);
    // It waits for a server that is down, and does not hang.
    observer.stateIs('connecting');
    expect(await pings(1_000_000)).toBe(1);
  });

  it('is nothing without a socket of systemd', async () => {
    const { service, sent } = manager({});
    service.observe(undefined).stateIs('active');
    service.ping();
    await service.stop();
    expect(sent).toEqual([]);
  });

  it('counts the time of the watchdog for this process alone', () => {
    expect(watchdogOf({ WATCHDOG_USEC: '120000000', WATCHDOG_PID: '7' }, 7)).toBe(120_000);
    expect(watchdogOf({ WATCHDOG_USEC: '120000000' }, 7)).toBe(120_000);
    expect(watchdogOf({ WATCHDOG_USEC: '120000000', WATCHDOG_PID: '8' }, 7)).toBeUndefined();
    expect(watchdogOf({ WATCHDOG_USEC: 'soon' }, 7)).toBeUndefined();
    expect(watchdogOf({}, 7)).toBeUndefined();
  });
});

describe('the unit file', () => {
  const options = {
    ...{ node: '/usr/bin/node', cli: '/opt/a b/100%/$x/cli.js', user: 'mpp' },
    ...{ envFile: '/etc/mpp-controller/env', version: '1.2.3' },
  };

  it('keeps a path as it is, whatever systemd would make of its characters', () => {
    expect(unitFile(options)).toContain(
      '\nExecStart="/usr/bin/node" "/opt/a b/100%%/$$x/cli.js" run\n',
    );
  });

  it('is one that systemd takes without a word, and calls safe', async (context) => {
    const folder = await mkdtemp(join(tmpdir(), 'mpp-unit-'));
    try {
      const file = join(folder, 'mpp-controller.service');
      await writeFile(file, unitFile({ ...options, node: process.execPath, cli: '/bin/sh' }));
      const analyze = (...args: string[]) =>
        spawnSync('systemd-analyze', [...args, file], { encoding: 'utf8' });
      const verified = analyze('verify', '--man=no');
      if (verified.error !== undefined) context.skip('systemd-analyze is not installed');
      expect(`${verified.stdout}${verified.stderr}`).not.toContain('mpp-controller.service:');
      const judged = analyze('security', '--offline=true', '--threshold=20', '--no-pager');
      expect(judged.status, judged.stdout).toBe(0);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
