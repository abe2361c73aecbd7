import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { PURPOSES, terminateSessions } from '../kit/faults/sessions.js';
import { STEPS, switchWithFault } from '../kit/faults/switch-with-fault.js';
import { Harness } from '../kit/harness.js';

describe("the controller's sessions or the coordinator's PostgreSQL end", () => {
  let h: Harness;
  let controller: ControllerProcess;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    controller = await h.startController();
  });
  afterAll(async () => h.stop());

  describe.each(STEPS)('%s', (step) => {
    it.each(PURPOSES)('pg_terminate_backend of the %s session', async (purpose) => {
      await switchWithFault(h, 1, step, () => terminateSessions(h.db, purpose));
    });

    it('stop -m immediate and start of PostgreSQL', async () => {
      await switchWithFault(h, 2, step, async () => {
        await h.cluster.coordinator.restart('immediate');
        await h.reconnect();
      });
    });
  });

  it('SIGKILL of PostgreSQL while holding', async () => {
    await switchWithFault(h, 2, 'while holding', async () => {
      await h.cluster.coordinator.kill();
      await h.cluster.coordinator.start();
      await h.reconnect();
    });
  });

  it('was one and the same controller process all the time', () => {
    expect(controller.exitCode).toBeNull();
    expect(controller.stderr).toBe('');
  });
});
