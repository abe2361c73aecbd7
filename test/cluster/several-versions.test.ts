import { afterEach, beforeEach, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Harness } from '../kit/harness.js';
import { Installation } from '../kit/installation.js';
import { waitFor, waitUntilReplayed } from '../kit/servers/index.js';

const VERSION = '99.0.0';
/** Refuses what an older version writes at each heartbeat. */
const REFUSING = `ALTER TABLE mpp_controllers ADD CHECK (version = '${VERSION}') NOT VALID`;
/** One that an older version could go on with, and would not notice. */
const HARMLESS = 'ALTER TABLE mpp_tasks ADD COLUMN future text';

describe('a rolling upgrade', () => {
  let h: Harness;
  let newer: Installation;
  let url: string;

  beforeEach(async () => {
    h = await Harness.start({
      template: inject('template'),
      groups: 2,
      standbys: false,
      coordinatorStandby: true,
    });
    newer = await Installation.create();
    url = `postgresql://postgres@${h.cluster.coordinator.address}/postgres`;
  });
  afterEach(async () => {
    await h.stop();
    await newer.remove();
  });

  async function migrate(): Promise<void> {
    const result = await runCli(['migrate'], { DATABASE_URL: url }, newer.program);
    expect(result).toMatchObject({ exitCode: 0, stderr: '' });
  }

  const start = (program = newer.program): ControllerProcess =>
    h.spawnController({}, h.cluster.coordinator, program);

  const says = async (controller: ControllerProcess, text: string): Promise<void> => {
    await controller.logged(text, ({ msg }) => msg.includes(text));
  };

  const versions = async (): Promise<string[]> => {
    const { rows } = await h.db.query<{ state: string; version: string }>(
      "SELECT state, version FROM mpp_status WHERE state <> 'gone' ORDER BY state",
    );
    return rows.map(({ state, version }) => `${state} ${version}`);
  };

  it.each([
    ['that it would not notice', HARMLESS],
    ['that its heartbeat fails on', REFUSING],
  ])(
    'the active one is older than a migration %s: it finishes its hold, stands down and hands over',
    async (_, sql) => {
      const old = await h.startController();
      const { primary } = h.cluster.group(1);
      const hold = await h.request({
        event: 'before_demote',
        groupid: 1,
        node: primary,
        timeout: '1min',
      });
      expect(hold.status).toBe('holding');
      const number = await newer.upgrade(VERSION, sql);
      await migrate();
      await says(old, 'finishes the groups that are held, takes no others');
      const late = await h.report({
        event: 'after_promote',
        groupid: 2,
        node: { host: 'localhost', port: h.cluster.group(2).primary.port },
      });
      const after = await h.request({
        event: 'after_promote',
        groupid: 1,
        node: { host: 'localhost', port: primary.port },
      });
      expect(after.status).toBe('done');
      expect(await h.task(hold.id)).toMatchObject({ status: 'done', attempt: 1 });
      await says(old, `stands down: schema public is at migration ${number}`);
      expect((await h.task(late)).status).toBe('pending');

      const next = start();
      await next.active();
      expect((await h.ended(late)).status).toBe('done');

      // The old one is still there, and no candidate: when the new one dies nobody acts.
      await next.end('SIGKILL');
      // What it had sent before may still run.
      await waitFor('the sessions of the new one to end', async () => {
        const { rows } = await h.db.query(
          "SELECT FROM pg_stat_activity WHERE application_name = 'mpp-controller queue'",
        );
        return rows.length === 0;
      });
      const last = await h.report({
        event: 'after_promote',
        groupid: 2,
        node: h.cluster.group(2).primary,
      });
      const before = await connections();
      await waitFor('the old one to look again', async () => (await connections()) > before + 1);
      expect((await h.task(last)).status).toBe('pending');
      expect(old.exitCode).toBeNull();
      const downs = old.log.filter(({ msg }) => msg.startsWith('stands down'));
      expect(downs).toMatchObject([{ level: 'warn' }]);
      expect(await old.end()).toBe(0);
    },
  );

  it('a hold of a controller that is older than a migration ends at its deadline, and says so', async () => {
    const old = await h.startController();
    await newer.upgrade(VERSION, HARMLESS);
    const hold = await h.request({
      event: 'before_demote',
      groupid: 1,
      node: h.cluster.group(1).primary,
      // Longer than the migration takes on a slow machine.
      timeout: '10s',
    });
    expect(hold.status).toBe('holding');
    await migrate();
    await says(old, 'finishes the groups that are held');
    await says(old, 'stands down: ');
    expect(await h.task(hold.id)).toMatchObject({
      status: 'rolled_back',
      reason: expect.stringContaining('deadline') as string,
    });
    expect(await old.end()).toBe(0);
  });

  it('one that stands by is older than the migration: it does not take over', async () => {
    const active = start();
    await active.active();
    const standby = start();
    await says(standby, 'stands by');
    await newer.upgrade(VERSION, HARMLESS);
    // Both run on while their files are replaced: each knows what it was started from.
    await migrate();
    await says(active, 'stands down: schema public is at migration');
    await says(standby, 'stands down: schema public is at migration');
    const next = start();
    await next.active();
    const before = await connections();
    await waitFor('the old ones to look again', async () => (await connections()) > before + 10);
    expect(await versions()).toEqual([`active ${VERSION}`]);
    for (const { log } of [active, standby]) {
      expect(log.filter(({ level }) => level !== 'debug').at(-1)?.msg).toMatch(/^stands down/);
    }
    await Promise.all([active, standby].map(async (one) => expect(await one.end()).toBe(0)));
  });

  it('two versions that know the same schema take turns', async () => {
    const old = await h.startController();
    await newer.rename(VERSION);
    const next = start();
    await says(next, 'stands by');
    await waitFor('both', async () => (await versions()).length === 2);
    await old.end('SIGKILL');
    await next.active();
    const again = h.spawnController();
    await says(again, 'stands by');
    await next.end('SIGKILL');
    await again.active();
  });

  it('beside a standby server: too old says so before it is needed, too new waits', async () => {
    const group = h.cluster.group(0);
    const { primary: coordinator, standby } = group;
    const old = h.spawnController({}, standby);
    await newer.upgrade(VERSION, HARMLESS);
    const next = h.spawnController({}, standby, newer.program);
    for (const one of [old, next]) await says(one, 'the server is a standby');
    await migrate();
    await says(old, 'stands down: schema public is at migration');
    await newer.upgrade('100.0.0', HARMLESS.replace('future', 'further'));
    const newest = h.spawnController({}, standby, newer.program);
    await says(newest, 'the server is a standby');
    await waitUntilReplayed(coordinator, standby);
    await group.failover();
    await h.reconnect();
    await next.active();
    await says(newest, 'run mpp-controller migrate');
    url = `postgresql://postgres@${standby.address}/postgres`;
    await migrate();
    await newest.active();
    for (const one of [old, next]) expect(await one.end()).toBe(0);
  });

  it('one that is started too early or too late ends, and says what to do', async () => {
    const number = await newer.upgrade(VERSION, HARMLESS);
    const early = await runCli(['run'], { DATABASE_URL: url }, newer.program);
    expect(early.exitCode).toBe(2);
    expect(early.stderr).toContain(`needs ${number}; run mpp-controller migrate`);
    await migrate();
    const late = await runCli(['run'], { DATABASE_URL: url });
    expect(late.exitCode).toBe(2);
    expect(late.stderr).toMatch(/is at migration \d+ and this version knows only \d+; install/);
  });

  async function connections(): Promise<number> {
    const { rows } = await h.db.query<{ sessions: number }>(
      "SELECT sessions::integer FROM pg_stat_database WHERE datname = 'postgres'",
    );
    return rows[0]?.sessions ?? 0;
  }
});
