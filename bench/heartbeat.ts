import { readFile } from 'node:fs/promises';
import pg from 'pg';
import { formatTable } from '../src/commands/output.js';
import { NODES_QUERY } from '../src/mpp/citus/nodes.js';
import { applyMigrations } from '../src/postgres/migrate.js';
import { createPool } from '../src/postgres/pool.js';
import { errorText } from '../src/postgres/session.js';
import { compareMembers, compareStatement } from '../src/topology/compare.js';
import { TestBed, type Server } from '../test/kit/servers/index.js';
import { installStandin } from '../test/kit/standin/install.js';

const GROUPS = 10_000;
const NODES_A_GROUP = 2;
/** Ended tasks beside them: the comparison must not read the history. */
const HISTORY = 200_000;
const TTL_MS = 3_600_000;
const SOURCES = ['table', 'probe'];
const WARM_UP_ROUNDS = 10;
const ROUNDS = 100;
/** What a heartbeat may cost, in milliseconds of the server's time. */
const MOST_MS = 100;

/** What must be the same before and after. */
interface Traces {
  readonly lsn: string;
  readonly tasks: string;
  readonly nextXid: string;
}

/**
 * One comparison of members with pg_dist_node where nothing differs: its time on the server, and that
 * it leaves no trace. See README.md in this folder.
 */
async function main(): Promise<void> {
  const testBed = await TestBed.open();
  try {
    // Other writers would move the WAL, too.
    const server = await testBed.createServer('heartbeat', { autovacuum: false });
    await server.start();
    await prepare(server);
    // One session, set up as those of the controller are.
    const session = createPool(server.connection, {
      schema: 'public',
      purpose: 'bench',
      max: 1,
      onIdleError: () => undefined,
    });
    const before = await traces(session);
    const cpuBefore = await cpuMs(session);
    const client = await measureClient(session);
    const cpuAfter = await cpuMs(session);
    const after = await traces(session);
    const onServer = await measureServer(session);
    process.stdout.write(`${heading(testBed)}\n\n`);
    process.stdout.write(
      `${formatTable(['', 'P50', 'P99', 'MOST'], [row('server', onServer.times), row('with the way there and back', client)])}\n\n`,
    );
    process.stdout.write(`${onServer.plan}\n\n`);
    const quiet = JSON.stringify(before) === JSON.stringify(after);
    process.stdout.write(
      `${ROUNDS + WARM_UP_ROUNDS} comparisons; WAL ${before.lsn} before and ${after.lsn} after, ` +
        `next transaction id ${before.nextXid} and ${after.nextXid}, tasks ${before.tasks} and ${after.tasks}\n`,
    );
    if (cpuBefore !== undefined && cpuAfter !== undefined) {
      const each = (cpuAfter - cpuBefore) / (ROUNDS + WARM_UP_ROUNDS);
      process.stdout.write(`CPU time of the server process for each: ${each.toFixed(1)} ms\n`);
    }
    // Others may use the machine, too: the median says more than the worst.
    const usual = percentile(onServer.times, 50);
    if (!quiet) throw new Error('something was written');
    if (onServer.readsHistory) throw new Error('the plan reads the whole of mpp_tasks');
    if (usual >= MOST_MS)
      throw new Error(`p50 is ${usual.toFixed(1)} ms, ${MOST_MS} ms is the most`);
    await session.end();
  } finally {
    await testBed.close();
  }
}

async function prepare(server: Server): Promise<void> {
  const { hasCitus } = server.binaries;
  await server.withSession(async (session) => {
    if (!hasCitus) await installStandin(session);
    await applyMigrations(session, { schema: 'public', lockTimeoutMs: 10_000 });
    await session.query("SET search_path = public; SET session_replication_role = 'replica'");
    await session.query(FILL_CATALOG, [GROUPS, NODES_A_GROUP]);
    await session.query(FILL_MEMBERS);
    await session.query(FILL_HISTORY, [HISTORY, GROUPS]);
    await session.query('VACUUM (ANALYZE, FREEZE)');
    await session.query('CHECKPOINT');
  });
}

const FILL_CATALOG = `
  INSERT INTO pg_dist_node (groupid, nodename, nodeport, noderole)
  SELECT g, format('worker-%s-%s.example.org', g, n), 5432,
         (CASE n WHEN 1 THEN 'primary' ELSE 'secondary' END)::noderole
  FROM generate_series(1, $1::integer) AS g, generate_series(1, $2::integer) AS n`;

const FILL_MEMBERS = `
  INSERT INTO mpp_members (groupid, nodename, nodeport, source, role, state, timeline, since)
  SELECT n.groupid, n.nodename, n.nodeport, 'probe', n.noderole::text, 'running', 1, clock_timestamp()
  FROM pg_dist_node AS n`;

const FILL_HISTORY = `
  INSERT INTO mpp_tasks (event, groupid, nodename, timeout, cooldown, source, status, created_at, finished_at)
  SELECT 'after_promote', i % $2::integer + 1, 'worker', '30 s', '10 s',
         CASE WHEN i % 2 = 0 THEN 'client' ELSE 'sync' END, 'done', now() - interval '1 day', now() - interval '1 day'
  FROM generate_series(1, $1::integer) AS i`;

async function traces(session: pg.Pool): Promise<Traces> {
  const { rows } = await session.query<Traces>(`
    SELECT pg_current_wal_insert_lsn()::text AS lsn,
           pg_snapshot_xmax(pg_current_snapshot())::text AS "nextXid",
           (SELECT count(*)::text FROM mpp_tasks) AS tasks`);
  const [row] = rows;
  if (row === undefined) throw new Error('no row');
  return row;
}

/** What the server process of a session has used; undefined where there is no /proc. In steps of 10 ms. */
async function cpuMs(session: pg.Pool): Promise<number | undefined> {
  const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  const stat = await readFile(`/proc/${rows[0]?.pid ?? 0}/stat`, 'utf8').catch(() => undefined);
  const [user, system] =
    stat
      ?.slice(stat.lastIndexOf(')') + 2)
      .split(' ')
      .slice(11, 13) ?? [];
  return user === undefined ? undefined : (Number(user) + Number(system)) * 10;
}

async function measureClient(session: pg.Pool): Promise<number[]> {
  const times: number[] = [];
  for (let round = 0; round < WARM_UP_ROUNDS + ROUNDS; round += 1) {
    const start = performance.now();
    const result = await compareMembers(session, {
      nodesQuery: NODES_QUERY,
      ttlMs: TTL_MS,
      sources: SOURCES,
    });
    if (round >= WARM_UP_ROUNDS) times.push(performance.now() - start);
    if (result.tasks.length + result.problems.length > 0) throw new Error('something differs');
  }
  return times;
}

interface Explained {
  readonly 'Planning Time': number;
  readonly 'Execution Time': number;
  readonly Plan: PlanNode;
}

interface PlanNode {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Subplan Name'?: string;
  readonly 'Actual Rows': number;
  readonly 'Actual Total Time': number;
  readonly Plans?: readonly PlanNode[];
}

/** Planning and execution, as the server counts them, with the timing of each plan node left out. */
async function measureServer(
  session: pg.Pool,
): Promise<{ times: number[]; plan: string; readsHistory: boolean }> {
  const times: number[] = [];
  let last: PlanNode | undefined;
  for (let round = 0; round < ROUNDS; round += 1) {
    const { rows } = await session.query<{ 'QUERY PLAN': [Explained] }>(
      `EXPLAIN (ANALYZE, TIMING off, FORMAT json) ${literal(compareStatement(NODES_QUERY))}`,
    );
    const explained = rows[0]?.['QUERY PLAN'][0];
    if (explained === undefined) throw new Error('no plan');
    times.push(explained['Planning Time'] + explained['Execution Time']);
    last = explained.Plan;
  }
  const scans = last === undefined ? [] : scansOf(last);
  const plan = formatTable(
    ['SCAN', 'OF', 'ROWS'],
    scans.filter(({ rows }) => rows > 0).map(({ type, of, rows }) => [type, of, String(rows)]),
  );
  const readsHistory = scans.some(({ type, of }) => type === 'Seq Scan' && of === 'mpp_tasks');
  return { times, plan, readsHistory };
}

/** EXPLAIN of a statement with parameters would need a prepared one, and that hides its planning. */
function literal(statement: string): string {
  return statement
    .replaceAll('$1', pg.escapeLiteral(String(TTL_MS)))
    .replaceAll('$2', pg.escapeLiteral(`{${SOURCES.join(',')}}`));
}

function scansOf(node: PlanNode): { type: string; of: string; rows: number }[] {
  const of = node['Relation Name'];
  const here = of === undefined ? [] : [{ type: node['Node Type'], of, rows: node['Actual Rows'] }];
  return [...here, ...(node.Plans ?? []).flatMap(scansOf)];
}

function heading({ binaries }: TestBed): string {
  const citus = binaries.hasCitus ? 'Citus' : 'the stand-in for Citus';
  return (
    `PostgreSQL ${binaries.version} with ${citus}: ${GROUPS} groups of ${NODES_A_GROUP} nodes, ` +
    `${HISTORY} ended tasks, nothing to do; ${ROUNDS} rounds`
  );
}

function row(name: string, times: readonly number[]): string[] {
  return [name, ...[50, 99, 100].map((percent) => `${percentile(times, percent).toFixed(1)} ms`)];
}

/** The smallest sample that at least `percent` of 100 samples do not exceed. */
function percentile(samples: readonly number[], percent: number): number {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.ceil((percent / 100) * sorted.length) - 1] ?? Number.NaN;
}

try {
  await main();
} catch (error) {
  process.stderr.write(`heartbeat: ${errorText(error)}\n`);
  process.exitCode = 1;
}
