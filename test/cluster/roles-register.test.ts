import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), register: false });
  // Two statements: with Citus a role cannot be made a member of one that the workers do not have.
  await h.createLogin('controller');
  await h.db.query('GRANT mpp_controller TO controller');
});
afterAll(async () => h.stop());

const url = (user: string): string =>
  `postgresql://${user}@${h.cluster.coordinator.address}/postgres`;

it('a controller without superuser registers a whole cluster', async () => {
  const { host } = h.cluster.coordinator;
  const bootstrap = await runCli(['bootstrap', '--coordinator-host', host], {
    DATABASE_URL: url('postgres'),
  });
  expect(bootstrap).toMatchObject({ exitCode: 0 });
  await h.startController({ DATABASE_URL: url('controller') });
  for (const groupid of [1, 2]) {
    const { primary, standby } = h.cluster.group(groupid);
    const id = await h.report({
      event: 'after_promote',
      groupid,
      node: primary,
      secondaries: [standby.address],
    });
    expect(await h.ended(id)).toMatchObject({ status: 'done' });
  }
  await expect
    .poll(async () => (await h.nodes()).map(({ groupid, node, role }) => [groupid, node, role]), {
      timeout: 60_000,
    })
    .toEqual([
      [0, expect.stringContaining(host), 'primary'],
      [1, h.cluster.group(1).primary.address, 'primary'],
      [1, h.cluster.group(1).standby.address, 'secondary'],
      [2, h.cluster.group(2).primary.address, 'primary'],
      [2, h.cluster.group(2).standby.address, 'secondary'],
    ]);
});
