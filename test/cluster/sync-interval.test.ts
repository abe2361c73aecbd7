import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({
    template: inject('template'),
    groups: 1,
    standbys: false,
    // Citus's own default.
    settings: { 'citus.metadata_sync_retry_interval': '5s' },
  });
});
afterAll(async () => h.stop());

it('a controller warns at its start where Citus syncs other nodes late, and names the command', async () => {
  const controller = await h.startController();
  const { msg, level } = await controller.logged('the interval', (line) =>
    line.msg.includes('citus.metadata_sync_retry_interval'),
  );
  expect(level).toBe('warn');
  expect(msg).toMatch(/ is 5s: .*clients of other nodes .*can wait/);
  expect(msg).toContain('mpp-controller gucs --apply');
  expect(msg).toContain("ALTER SYSTEM SET citus.metadata_sync_retry_interval = '200ms'");
  expect(await controller.end()).toBe(0);

  // What the warning names makes it go away.
  await h.db.query("ALTER SYSTEM SET citus.metadata_sync_retry_interval = '200ms'");
  await h.db.query('SELECT pg_reload_conf()');
  const next = await h.startController({ MPP_HEARTBEAT: '200ms' });
  // The heartbeat is on the session that the parameter is read on, so it comes after that.
  await waitFor('a heartbeat', async () => {
    const { rowCount } = await h.db.query(
      "SELECT FROM mpp_controllers WHERE pid = $1 AND heartbeat_at > started_at + interval '400 ms'",
      [next.pid],
    );
    return rowCount === 1;
  });
  expect(await next.end()).toBe(0);
  expect(next.log.filter((line) => line.msg.includes('metadata_sync_retry_interval'))).toEqual([]);
});
