import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Harness } from '../support/harness.js';
import { startTraffic } from '../support/traffic/traffic.js';
import type { ControllerProcess } from '../support/controller-process.js';

describe('a worker is switched over while clients write', () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), secondaries: true });
    controller = await h.startController();
  });
  afterAll(async () => h.stop());

  it('row C: worker switchover, twice: no failed insert, row count exact', async () => {
    const group = h.cluster.group(1);
    const [row] = await h.nodes(1);
    const traffic = startTraffic({
      connection: h.cluster.coordinator.connection,
      clients: { writers: 4, readers: 0 },
      thinkMs: 2,
    });
    for (let round = 1; round <= 2; round += 1) {
      await traffic.waitForProgress(40);
      const [old, next] = [group.primary, group.standby];
      const demote = await h.request({ event: 'before_demote', groupid: 1, node: old });
      expect(demote).toMatchObject({ status: 'holding', nodeid: row?.nodeid });
      await group.switchover();
      const promote = await h.request({ event: 'before_promote', groupid: 1, node: next });
      expect(promote.status).toBe('holding');
      const after = await h.request({ event: 'after_promote', groupid: 1, node: next });
      expect(after.status).toBe('done');

      expect(await h.nodes(1)).toEqual([
        { nodeid: row?.nodeid, groupid: 1, node: next.address, role: 'primary' },
        expect.objectContaining({ node: old.address, role: 'secondary' }),
      ]);
      expect((await h.task(demote.id)).status).toBe('done');
      expect((await h.task(promote.id)).status).toBe('done');
      expect(await h.history(demote.id)).toEqual(['pending', 'claimed', 'holding', 'done']);
      await traffic.waitForProgress(40);
      await group.rejoin();
    }
    const report = await traffic.stop();
    expect(report.failures).toEqual([]);
    const { rows } = await h.db.query('SELECT count(*)::integer AS count FROM items');
    expect(rows).toEqual([{ count: report.inserted }]);
    expect(controller.stderr).toBe('');
  });
});
