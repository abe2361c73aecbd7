import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { Finding } from '../../src/doctor/finding.js';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template') });
});
afterAll(async () => h.stop());

interface Outcome {
  readonly exitCode: number | null;
  readonly findings: readonly Finding[];
}

async function doctor(node: string, database = 'postgres'): Promise<Outcome> {
  const env = { DATABASE_URL: `postgresql://postgres@${node}/${database}` };
  const { exitCode, stdout } = await runCli(['doctor', '--json'], env);
  return { exitCode, ...(JSON.parse(stdout) as { findings: Finding[] }) };
}

function wrong({ findings }: Outcome): string[] {
  return findings.filter(({ level }) => level === 'error').map(({ id }) => id);
}

describe('doctor', () => {
  it('finds nothing wrong on a healthy cluster', async () => {
    const outcome = await doctor(h.cluster.coordinator.address);
    expect(wrong(outcome)).toEqual([]);
    expect(outcome.exitCode).toBe(0);
  });

  it('says of a worker and of a standby that they are no coordinator', async () => {
    const { primary, standby } = h.cluster.group(1);
    const worker = await doctor(primary.address);
    expect(wrong(worker)).toEqual(['server-worker']);
    expect(worker.findings[0]?.fix).toEqual([
      `export DATABASE_URL=postgresql://postgres@${h.cluster.coordinator.address}/postgres`,
    ]);
    expect(wrong(await doctor(standby.address))).toEqual(['server-standby', 'server-worker']);
    expect(worker.exitCode).toBe(2);
  });

  it('says what a database lacks that is not there, or has no Citus', async () => {
    const { address } = h.cluster.coordinator;
    expect(wrong(await doctor(address, 'nowhere'))).toEqual(['server-unreachable']);
    expect(wrong(await doctor(address, 'template1'))).toEqual(['citus-missing']);
  });
});
