import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { builtCli, cliEnvironment, type CommandResult } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Actor } from '../kit/faults/actor.js';
import { BusyClient } from '../kit/faults/busy-client.js';
import { waitUntilNothingHeld } from '../kit/faults/hold-sessions.js';
import { Harness } from '../kit/harness.js';
import { exists } from '../kit/servers/folder.js';
import { waitFor, type Group, type Server } from '../kit/servers/index.js';
import { waitUntilSynced } from '../kit/standin/observe.js';
import { keysOfGroup } from '../kit/standin/schema.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

describe('mpp-controller switchover and restart', () => {
  let h: Harness;
  let controller: ControllerProcess | undefined;
  let group: Group;
  let key: number;
  let folder: string;
  const running: ChildProcess[] = [];
  const clients: BusyClient[] = [];
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template') });
    group = h.cluster.group(1);
    [key = 0] = await keysOfGroup(h.db, 1, 1);
    await h.db.query('INSERT INTO items VALUES ($1, 0)', [key]);
    await h.createLogin('operator');
    await h.db.query('GRANT mpp_client TO operator');
  });
  beforeEach(async () => {
    await waitUntilSynced(h.db);
    folder = await mkdtemp(join(tmpdir(), 'mpp-switchover-'));
    controller = await h.startController({ MPP_PAUSE: 'all' });
  });
  afterEach(async () => {
    for (const child of running.splice(0)) child.kill('SIGKILL');
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await Promise.all(clients.splice(0).map((client) => client.stop()));
    await waitUntilNothingHeld(h);
    await controller?.end();
    await rm(folder, { recursive: true, force: true });
  });
  afterAll(async () => h.stop());

  /** A shell command that has this test do something, and ends when it is done. */
  function asks(name: string): string {
    const [asked, done] = [join(folder, `${name}.asked`), join(folder, `${name}.done`)];
    return `touch ${asked}; while [ ! -e ${done} ]; do sleep 0.02; done; exec sh ${done}`;
  }

  /** Does what the command asks for, which then ends with this exit code. */
  async function serve(name: string, work: () => Promise<void>, code = 0): Promise<void> {
    await asked(name);
    await work();
    await finish(name, code);
  }

  async function asked(name: string): Promise<void> {
    await waitFor(`the command ${name}`, () => exists(join(folder, `${name}.asked`)));
  }

  async function finish(name: string, code = 0): Promise<void> {
    await writeFile(join(folder, `${name}.done`), `exit ${code}\n`);
  }

  interface Running {
    readonly child: ChildProcess;
    readonly result: Promise<CommandResult>;
  }

  function start(...args: readonly string[]): Running {
    const { host, port } = h.cluster.coordinator;
    const [file, ...first] = builtCli();
    const child = spawn(file, [...first, ...args], {
      env: cliEnvironment({
        DATABASE_URL: `postgres://operator@${host}:${port}/postgres`,
        MPP_NODE_URL: 'postgres://postgres@any/postgres',
      }),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    running.push(child);
    const result = Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]).then(
      ([stdout, stderr]) => ({ exitCode: child.exitCode, stdout, stderr }),
    );
    return { child, result };
  }

  function switchover(...args: readonly string[]): Running {
    const commands = ['--stop', asks('stop'), '--promote', asks('promote')];
    return start('switchover', '1', '--to', group.standby.address, ...commands, ...args);
  }

  async function repeat(server: Server): Promise<BusyClient> {
    const client = await BusyClient.start(server, [[UPDATE, [key]]]);
    clients.push(client);
    return client;
  }

  async function primaryOfGroup(): Promise<string | undefined> {
    return (await h.nodes(1)).find(({ role }) => role === 'primary')?.node;
  }

  /** Nothing waits, and the row is where it was. */
  async function expectUnchanged(node: string): Promise<void> {
    expect(await primaryOfGroup()).toBe(node);
    await waitUntilNothingHeld(h);
    await h.db.query(UPDATE, [key]);
  }

  it('switchover stops and promotes by the commands, without a failed statement', async () => {
    const [old, next] = [group.primary, group.standby];
    const client = await repeat(h.cluster.coordinator);
    await client.progress(5);
    const { result } = switchover('--yes');
    await serve('stop', () => old.stop());
    await serve('promote', () => group.promoteStandby());
    const { exitCode, stdout, stderr } = await result;
    expect(stderr).toBe('');
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(
      new RegExp(
        `^group 1: ${old.address} -> ${next.address}; its traffic waits for 1min at most\n` +
          '  stop     \\$ .*\n  promote  \\$ .*\n' +
          '  hold     [0-9.]+ s\n[^]*  stop     [0-9.]+ s[^]*\n[^]*  promote  [0-9.]+ s[^]*\n  commit   [0-9.]+ s\n' +
          `done in [0-9.]+ s: the primary of group 1 is ${next.address} now\n$`,
      ),
    );
    expect(await primaryOfGroup()).toBe(next.address);
    // A client that failed would throw here.
    await client.progress(5);
    await group.rejoin();
  });

  it('restart holds the group while the command runs, and tells machines what took how long', async () => {
    const { primary } = group;
    const { result } = start('restart', '1', '--cmd', asks('restart'), '--yes', '--json');
    await asked('restart');
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    const waiting = await actor.sendAndWait(UPDATE, [key]);
    await serve('restart', async () => {
      await primary.stop();
      await primary.start();
    });
    const { exitCode, stdout } = await result;
    expect(exitCode).toBe(0);
    await waiting.answer;
    const ms = expect.any(Number) as number;
    expect(JSON.parse(stdout)).toEqual({
      group: 1,
      from: primary.address,
      to: primary.address,
      outcome: 'done',
      steps: [
        { step: 'hold', ms },
        { step: 'restart', ms },
        { step: 'commit', ms },
      ],
    });
    await expectUnchanged(primary.address);
  });

  it('the commands get the addresses, and what they print is on standard error', async () => {
    const { primary } = group;
    const cmd = 'echo group $MPP_GROUP at $MPP_FROM_HOST:$MPP_FROM_PORT; echo trouble >&2';
    const { exitCode, stderr } = await start('restart', '1', '--cmd', cmd, '--yes').result;
    expect(exitCode).toBe(0);
    expect(stderr.split('\n').sort()).toEqual([
      '',
      `restart: group 1 at ${primary.address}`,
      'restart: trouble',
    ]);
  });

  it('a command that fails while the old primary runs changes nothing, and the traffic goes on', async () => {
    const before = await primaryOfGroup();
    const { result } = switchover('--yes');
    await serve('stop', () => Promise.resolve(), 7);
    const { exitCode, stderr } = await result;
    expect(exitCode).toBe(3);
    expect(stderr).toContain('nothing was changed: stop: it ended with exit code 7');
    await expectUnchanged(before ?? '');
  });

  it('a promotion that fails leaves the traffic waiting, and starting the old primary ends that', async () => {
    const old = group.primary;
    const { result } = switchover('--yes', '--timeout', '5min');
    await serve('stop', () => old.stop());
    await serve('promote', () => Promise.resolve(), 1);
    const { exitCode, stderr } = await result;
    expect(exitCode).toBe(6);
    expect(stderr).toContain('not complete: promote: it ended with exit code 1');
    expect(stderr).toContain(`Start ${old.address}: the hold then ends by itself`);
    expect(stderr).toContain(
      `mpp-controller notify after_promote --group 1 --host ${group.standby.connection.host}`,
    );
    expect(await h.holds()).toBe(1);
    await old.start();
    await expectUnchanged(old.address);
  });

  it.each(['SIGINT', 'SIGTERM'] as const)(
    '%s while the group cannot be held yet changes nothing',
    async (signal) => {
      const before = await primaryOfGroup();
      const writer = await Actor.connect(h.cluster.coordinator);
      actors.push(writer);
      await writer.begin(UPDATE, [key]);
      const { child, result } = switchover('--yes', '--cooldown', '1min');
      await waitFor('the task to be claimed', async () => {
        const { rowCount } = await h.db.query(
          "SELECT FROM mpp_tasks WHERE event = 'before_demote' AND status = 'claimed'",
        );
        return rowCount === 1;
      });
      child.kill(signal);
      const { exitCode, stderr } = await result;
      expect(stderr).toContain('nothing was changed: interrupted');
      expect(exitCode).toBe(3);
      await writer.query('COMMIT');
      await expectUnchanged(before ?? '');
    },
  );

  it('Ctrl-C while the old primary stops goes on once it is stopped: that is the way to a group that works', async () => {
    const [old, next] = [group.primary, group.standby];
    const { child, result } = switchover('--yes');
    await asked('stop');
    child.kill('SIGINT');
    await serve('stop', () => old.stop());
    await serve('promote', () => group.promoteStandby());
    expect((await result).exitCode).toBe(0);
    expect(await primaryOfGroup()).toBe(next.address);
    await group.rejoin();
  });

  it('a second Ctrl-C ends a command that goes on after the first', async () => {
    const before = await primaryOfGroup();
    const { child, result } = switchover('--yes');
    await asked('stop');
    child.kill('SIGINT');
    const again = setInterval(() => child.kill('SIGINT'), 100);
    const { exitCode, stderr } = await result.finally(() => clearInterval(again));
    expect(stderr).toContain('nothing was changed: stop: it was ended by SIGKILL');
    expect(exitCode).toBe(3);
    await expectUnchanged(before ?? '');
  });

  it('a promotion that is not over when its command ends is waited for', async () => {
    const [old, next] = [group.primary, group.standby];
    const { result } = switchover('--yes');
    await serve('stop', () => old.stop());
    await serve('promote', () => Promise.resolve());
    await waitFor('the controller to find the node in recovery', async () => {
      const { rowCount } = await h.db.query(
        "SELECT FROM mpp_tasks WHERE event = 'after_promote' AND status = 'pending' AND reason ~ 'recovery'",
      );
      return rowCount === 1;
    });
    await group.promoteStandby();
    expect((await result).exitCode).toBe(0);
    expect(await primaryOfGroup()).toBe(next.address);
    await group.rejoin();
  });

  it('without a controller nothing is stopped', async () => {
    const before = await primaryOfGroup();
    await controller?.end();
    const { exitCode, stderr } = await switchover('--yes', '--timeout', '500ms').result;
    expect(exitCode).toBe(3);
    expect(stderr).toContain('no controller took the report within 500ms');
    expect(await exists(join(folder, 'stop.asked'))).toBe(false);
    controller = await h.startController();
    await expectUnchanged(before ?? '');
  });

  it.each([
    ['a port without a server', () => '127.0.0.1:1', /127.0.0.1:1 does not answer/],
    ['a primary', () => h.cluster.group(2).primary.address, /is no standby, it takes writes/],
    ['the primary itself', () => group.primary.address, /is the primary of the group already/],
  ])('%s is refused before anything is stopped', async (_, to, message) => {
    const commands = ['--stop', asks('stop'), '--promote', 'true', '--yes'];
    const { exitCode, stderr } = await start('switchover', '1', '--to', to(), ...commands).result;
    expect(exitCode).toBe(3);
    expect(stderr).toMatch(message);
    expect(await exists(join(folder, 'stop.asked'))).toBe(false);
  });

  it.each([
    ['without --yes and a terminal', [], /give --yes, or confirm on a terminal/],
    ['with a group that is none', ['--group'], /unknown option '--group'/],
    ['with a pause that is none', ['--pause', 'reads'], /argument 'reads' is invalid/],
    ['with a timeout that is none', ['--timeout', '5'], /--timeout/],
  ])('%s it ends with 2', async (_, more, message) => {
    const { exitCode, stderr } = await switchover(...more).result;
    expect(exitCode).toBe(2);
    expect(stderr).toMatch(message);
    expect(await exists(join(folder, 'stop.asked'))).toBe(false);
  });

  it('a group without a primary is refused', async () => {
    const { exitCode, stderr } = await start('restart', '77', '--cmd', 'true', '--yes').result;
    expect(exitCode).toBe(2);
    expect(stderr).toContain('group 77 has no primary in pg_dist_node');
  });

  it('--dry-run says what would be done, and does nothing', async () => {
    const { exitCode, stdout } = await switchover('--dry-run').result;
    expect(exitCode).toBe(0);
    expect(stdout).toContain(`group 1: ${group.primary.address} -> ${group.standby.address}`);
    expect(stdout).toContain('nothing was done: --dry-run');
    expect(await exists(join(folder, 'stop.asked'))).toBe(false);
  });
});
