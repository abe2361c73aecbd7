import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { Finding } from '../../src/doctor/finding.js';
import { runCli } from '../kit/cli.js';
import type { ControllerProcess } from '../kit/controller-process.js';
import { Clinic, wrong, type Outcome } from '../kit/doctor/clinic.js';
import { FAULTS } from '../kit/doctor/faults.js';
import { waitFor } from '../kit/servers/index.js';

let clinic: Clinic;
let controller: ControllerProcess;

beforeAll(async () => {
  clinic = await Clinic.open(inject('template'));
  controller = await clinic.startController();
});
afterAll(async () => clinic.close());

describe('doctor', () => {
  it('has nothing above a note on a healthy cluster, for a role that is no superuser, too', async () => {
    for (const user of ['postgres', 'keeper']) {
      const outcome = await clinic.doctor({ user });
      expect(wrong(outcome, ['error', 'warning'])).toEqual([]);
      expect(outcome.exitCode).toBe(0);
    }
  });

  it('says of a worker and of a standby that they are no coordinator', async () => {
    const { primary, standby } = clinic.h.cluster.group(1);
    const worker = await clinic.doctor({ node: primary.address });
    expect(wrong(worker)).toEqual(['server-worker']);
    expect(worker.findings[0]?.fix).toEqual([
      `export DATABASE_URL=postgresql://postgres@${clinic.h.cluster.coordinator.address}/postgres`,
    ]);
    expect(worker.exitCode).toBe(2);
    const other = await clinic.doctor({ node: standby.address });
    expect(wrong(other)).toEqual(['server-standby']);
    expect(other.findings[0]?.fix).toEqual([
      `export DATABASE_URL=postgresql://postgres@${primary.address}/postgres`,
    ]);
  });

  it('says what a database lacks that is not there, or has no Citus', async () => {
    const nowhere = await clinic.doctor({ database: 'nowhere' });
    expect(wrong(nowhere)).toEqual(['server-unreachable']);
    expect(nowhere.findings[0]?.fix).toEqual(['mpp-controller bootstrap']);
    expect(wrong(await clinic.doctor({ database: 'template1' }))).toEqual(['citus-missing']);
  });

  it('ends with a line and no findings where a setting cannot be used', async () => {
    const env = { MPP_PATRONI: `1=${clinic.patroni.url}`, MPP_PATRONI_CA: '/nowhere/ca.pem' };
    const { exitCode, stdout, stderr } = await clinic.run(['doctor', '--json'], { env });
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toMatch(/^mpp-controller: MPP_PATRONI_CA names a file [^\n]+\n$/);
  });

  it('prints the worst first, each with its fix below, without colours, and counts them', async () => {
    const DATABASE_URL = `postgresql://postgres@${clinic.h.cluster.coordinator.address}/template1`;
    const { stdout, exitCode } = await runCli(['doctor'], { DATABASE_URL, MPP_SHEMA: 'x' });
    expect(exitCode).toBe(2);
    expect(stdout).toMatch(
      /^ERROR\n {2}citus-missing \[.+\]: .+\n {6}mpp-controller gucs --apply\n.+\n\nWARNING\n {2}settings-unknown: /,
    );
    expect(stdout).toMatch(/\n\n1 error, 1 warning, 0 note, \d+ ok\n$/);
    expect(stdout).not.toContain('\u001b');
  });
});

describe('doctor without a controller', () => {
  it('says so until one runs', async () => {
    await controller.end();
    const outcome = await clinic.doctor();
    expect(wrong(outcome)).toEqual(['controller-none']);
    expect(outcome.exitCode).toBe(2);
    expect(outcome.findings[0]?.fix).toEqual(['mpp-controller run']);
    controller = await clinic.startController();
    expect(wrong(await clinic.doctor())).toEqual([]);
  });
});

function problems({ findings }: Outcome): Finding[] {
  return findings.filter(({ level }) => level !== 'ok');
}

function placeOf({ id, node }: Finding): string {
  return `${id} ${node ?? ''}`;
}

describe('a fault is found by its check alone, and its fix ends it', () => {
  it.each(FAULTS)('$id ($what)', async (fault) => {
    if (fault.controller === false) await controller.end();
    const options = fault.options?.(clinic) ?? {};
    const before = await clinic.doctor({ ...options, env: {}, args: [] });
    const unplant = await fault.plant(clinic);
    const env = fault.env?.(clinic) ?? {};
    const call = { ...options, env, args: fault.args ?? [] };
    try {
      const outcome = await clinic.doctor(call);
      const known = new Set(problems(before).map(placeOf));
      const found = problems(outcome).filter((one) => !known.has(placeOf(one)));
      expect([...new Set(found.map(({ id }) => id))].sort()).toEqual(
        [fault.id, ...(fault.also ?? [])].sort(),
      );
      const finding = found.find(({ id }) => id === fault.id);
      expect(finding?.node).toBe(fault.node?.(clinic) ?? null);
      expect(finding?.fix).not.toEqual([]);
      if (fault.paste === false) return;
      const lines = fault.complete?.(clinic, finding?.fix ?? []) ?? finding?.fix ?? [];
      await clinic.paste(lines, env);
      await waitFor(`the finding ${fault.id} to go away`, async () => {
        const now = await clinic.doctor(call);
        return !problems(now).some(({ id, node }) => id === fault.id && node === finding?.node);
      });
    } finally {
      await unplant();
      if (fault.controller === false) controller = await clinic.startController();
    }
  });
});
