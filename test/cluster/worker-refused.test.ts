import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Harness } from '../kit/harness.js';

const template = inject('template');

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template, groups: 1, standbys: false });
  const worker = h.cluster.group(1).primary;
  await worker.withSession((session) =>
    session.query('UPDATE pg_dist_local_group SET groupid = 1 WHERE groupid <> 1'),
  );
});

afterAll(() => h.stop());

describe('the address of a worker', () => {
  it.each([
    'migrate',
    'bootstrap',
    'status',
    'run --log-level silent',
    'notify suspect --group 1 --host w1',
  ])('is refused by %s, which names its group and the coordinator', async (args) => {
    const worker = h.cluster.group(1).primary;
    const result = await runCli(args.split(' '), {
      DATABASE_URL: `postgresql://postgres@${worker.address}/postgres`,
    });
    expect(result).toMatchObject({ exitCode: 2, stdout: '' });
    expect(result.stderr).toMatch(
      /^mpp-controller: this is a worker of group 1; the coordinator is [^\n]+:\d+\. [^\n]+\n$/,
    );
    expect(result.stderr).toContain(h.cluster.coordinator.address);
  });
});
