import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { primaryAddress } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

describe('a database of MPP_DATABASES in which nothing can be done', () => {
  let h: Harness;

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
  });
  afterAll(async () => h.stop());

  it('is named and tried again, and the others go on', async () => {
    const controller = h.spawnController({ MPP_DATABASES: 'postgres,later' });
    await h.db.query('CREATE DATABASE later');
    await controller.active();
    const line = await controller.logged('what is wrong', ({ level }) => level === 'error');
    expect(line).toMatchObject({
      database: 'later',
      msg: expect.stringMatching(/tried again$/) as string,
    });
    const node = await primaryAddress(h, 1);
    const after = await h.request({ event: 'after_promote', groupid: 1, node });
    expect(after.status).toBe('done');

    // The controller, which tries again, may be there at this moment.
    await h.db.query('DROP DATABASE later WITH (FORCE)');
    await h.addDatabase('later');
    await controller.logged(
      'that it is active there, too',
      (one) => one.msg.startsWith('active,') && one['database'] === 'later',
    );
    expect(await controller.end()).toBe(0);
  });

  it('ends the controller when there is no other', async () => {
    const controller = h.spawnController({ MPP_DATABASES: 'template1' });
    await waitFor('the controller to end', () => Promise.resolve(controller.exitCode !== null));
    expect(controller.exitCode).not.toBe(0);
    expect(controller.stderr).toContain('database template1: ');
  });
});
