import { spawn } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errorText } from '../../src/postgres/session.js';
import { packageRoot } from '../../src/package-root.js';

/** A bug of a kind that the schedules must find, as a change of one or two places in src. */
interface Bug {
  readonly name: string;
  readonly changes: readonly {
    readonly file: string;
    readonly from: string;
    readonly to: string;
  }[];
}

const BUGS: readonly Bug[] = [
  {
    // The second alone was not found in 40 schedules: the lock makes up for it.
    name: 'a missing fence: the lock of a group is not taken, and a task is finished that another controller has claimed meanwhile',
    changes: [
      {
        file: 'controller/group-session.ts',
        from: 'WHERE g.groupid = ${groupid} FOR UPDATE SKIP LOCKED`',
        to: 'WHERE g.groupid = ${groupid}`',
      },
      {
        file: 'tasks/finish.ts',
        from: 'ON t.id = a.id AND t.attempt = a.attempt\n    WHERE t.claimed_by = $3\n',
        to: "ON t.id = a.id\n    WHERE coalesce($3::text, '') IS NOT NULL\n",
      },
    ],
  },
  {
    name: 'a late rollback: deadlines are kept three seconds late, by the controller and by the server',
    changes: [
      {
        file: 'controller/holds.ts',
        from: 'Math.ceil(Math.max(0, ms)) + 1)',
        to: 'Math.ceil(Math.max(0, ms)) + 3_001)',
      },
      {
        file: 'postgres/transaction.ts',
        from: 'return [idleMs, lockMs, statementMs, idleMs + statementMs].map(',
        to: 'return [idleMs + 3_000, lockMs, statementMs, idleMs + statementMs + 3_000].map(',
      },
    ],
  },
  {
    name: 'a lost wake-up: notifications are not heard',
    changes: [
      {
        file: 'postgres/listener.ts',
        from: 'subscriber.notifications.on(channel, onWake);',
        to: 'subscriber.notifications.on(channel, () => undefined);',
      },
    ],
  },
  {
    name: 'an acknowledgement before the pause',
    changes: [
      {
        file: 'controller/hold-traffic.ts',
        from: '  hold.pausing = await place.traffic.pause({',
        to:
          '  await markHolding(place.db, attemptOf(place.controller, task), node.nodeid, null);\n' +
          '  hold.pausing = await place.traffic.pause({',
      },
    ],
  },
  {
    name: 'a row that is moved before the node was checked',
    changes: [
      {
        file: 'controller/commit-change.ts',
        from: "if (verdict.kind !== 'confirmed') return leaveUnconfirmed(place, work, verdict);",
        to: 'void verdict;',
      },
      {
        file: 'controller/commit-change.ts',
        from: "if (verdict.kind !== 'confirmed') return leaveUnconfirmed(place, work, verdict, 'steps');",
        to: 'void verdict;',
      },
    ],
  },
  {
    name: 'locks that are kept after their holder has left',
    changes: [
      {
        file: 'mpp/citus/pause/node-pause.ts',
        from: 'await Promise.all([inTime(this.#holder.leave()), ',
        to: 'await Promise.all([',
      },
    ],
  },
];

/** How many are run, from seed 1 on, before a bug counts as not found. */
const SCHEDULES = 40;

/**
 * Plants each bug, or those whose name has the first argument, in a copy of the project, and runs schedules until
 * one is violated: `npm run test:faults:planted`. Takes up to two minutes a bug.
 */
async function main(): Promise<number> {
  let missed = 0;
  const [part = ''] = process.argv.slice(2);
  for (const bug of BUGS.filter(({ name }) => name.includes(part))) {
    const found = await findBug(bug);
    if (found === undefined) missed += 1;
    process.stdout.write(`${bug.name}: ${found ?? `NOT FOUND in ${SCHEDULES} schedules`}\n`);
  }
  return missed === 0 ? 0 : 1;
}

/** @returns the schedule that found it, and what it said. */
async function findBug({ changes }: Bug): Promise<string | undefined> {
  const root = packageRoot();
  const folder = await mkdtemp(join(tmpdir(), 'mpp-planted-'));
  try {
    const parts = ['src', 'test', 'migrations', 'bench', 'package.json'];
    const configs = ['tsconfig.json', 'tsconfig.build.json', 'tsconfig.support.json'];
    for (const part of [...parts, ...configs])
      await cp(join(root, part), join(folder, part), { recursive: true });
    await symlink(join(root, 'node_modules'), join(folder, 'node_modules'));
    for (const { file, from, to } of changes) {
      const path = join(folder, 'src', file);
      const text = await readFile(path, 'utf8');
      if (!text.includes(from))
        throw new Error(`${file} has no longer what the bug replaces: ${from}`);
      await writeFile(
        path,
        text.replace(from, () => to),
      );
    }
    const options = ['--seed', '1', '--schedules', String(SCHEDULES), '--stages', '2'];
    const output = await run(folder, ['run', '--silent', 'test:faults', '--', ...options]);
    const violation = /^VIOLATION: (.*)$/m.exec(output)?.[1];
    const seed = /^seed (\d+)/m.exec(output)?.[1];
    return violation && `found by seed ${seed ?? ''}: ${violation}`;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** @returns what it printed; it may have ended with an error. */
async function run(cwd: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn('npm', args, { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.on('error', reject);
    child.on('close', () => resolve(output));
  });
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`test:faults:planted: ${errorText(error)}\n`);
  process.exitCode = 1;
}
