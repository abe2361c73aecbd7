import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), secondaries: false });
  // Two statements: with Citus a role cannot be made a member of one that the workers do not have.
  await h.db.query('CREATE ROLE "the controller" LOGIN');
  await h.db.query('GRANT mpp_controller TO "the controller"');
  await h.db.query('CREATE ROLE app');
  expect(await runCli(['bootstrap'], { DATABASE_URL: url('postgres') })).toMatchObject({
    exitCode: 0,
  });
});
afterAll(async () => h.stop());

const url = (user: string): string =>
  `postgresql://${encodeURIComponent(user)}@${h.cluster.coordinator.address}/postgres`;

/** What a controller warns of once it is active. */
async function warnings(user: string): Promise<string[]> {
  const controller = await h.startController({ DATABASE_URL: url(user) });
  // The heartbeat is on the session that the rights are read on, so it comes after them.
  await waitFor('a heartbeat', async () => {
    const { rows } = await h.db.query(
      'SELECT FROM mpp_controllers WHERE pid = $1 AND heartbeat_at > started_at + $2::interval',
      [controller.pid, '400 ms'],
    );
    return rows.length > 0;
  });
  await controller.end();
  return controller.log.filter(({ level }) => level === 'warn').map(({ msg }) => msg);
}

it('a controller says at its start what its role may not do, and what gives it the right', async () => {
  await h.db.query('REVOKE pg_signal_backend FROM mpp_controller');
  await h.db.query('REVOKE SET ON PARAMETER deadlock_timeout FROM mpp_controller');
  await h.db.query('DROP FUNCTION mpp_add_node, mpp_remove_node');
  const role = 'role "the controller"';
  const reads = 'with pause all, reads of a held group that has them do not wait';
  const others = [
    `${role} may not end sessions that block a hold past their cooldown: run GRANT pg_signal_backend TO "the controller"`,
    `${role} may not set deadlock_timeout, so that a hold can lose a deadlock: run GRANT SET ON PARAMETER deadlock_timeout TO "the controller"`,
    `${role} cannot add or remove nodes, nor register the coordinator: run mpp-controller bootstrap as a superuser, which installs mpp_add_node, mpp_remove_node`,
  ];
  const first = await warnings('the controller');
  expect(first[0]).toMatch(/^role "the controller" may not lock public\.\w+/);
  expect(first[0]).toContain(
    `${reads}; give the tables of postgres to a role that is no superuser`,
  );
  expect(first.slice(1)).toEqual(others);

  const { rows } = await h.db.query<{ name: string }>(
    'SELECT logicalrelid::text AS name FROM pg_dist_partition ORDER BY 1',
  );
  for (const { name } of rows) await h.db.query(`ALTER TABLE ${name} OWNER TO app`);
  const second = await warnings('the controller');
  expect(second[0]).toContain(`${reads}; run GRANT app TO "the controller"`);
  expect(second.slice(1)).toEqual(others);

  for (const sentence of [...second.slice(0, 3)]) {
    await h.db.query(/run (GRANT .+)$/.exec(sentence)?.[1] ?? '');
  }
  await runCli(['bootstrap'], { DATABASE_URL: url('postgres') });
  expect(await warnings('the controller')).toEqual([]);
});

it('a controller that is a superuser has nothing to say of its rights', async () => {
  expect(await warnings('postgres')).toEqual([]);
});
