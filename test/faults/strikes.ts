import type { Client } from 'pg';
import type { FaultProxy } from '../kit/faults/proxy.js';
import type { Server } from '../kit/servers/index.js';
import { keysOfGroup } from '../kit/standin/schema.js';
import type { Fault, LinkFault, LockPlace, Purpose } from './schedule.js';
import type { Stage } from './stage.js';

/** Undoes a fault. Idempotent, and never fails because the server is down. */
export type Lift = () => Promise<void>;

/** How long a statement of a fault may take: what it wants may be locked, or its server may be down. */
const STATEMENT_MS = 500;

const nothing: Lift = () => Promise.resolve();

/**
 * Makes a fault.
 *
 * @returns what undoes it; undefined where there was nothing to strike: its controller is killed already, its
 *   server is down, or no session has that purpose.
 */
export async function strike(stage: Stage, fault: Fault): Promise<Lift | undefined> {
  const { coordinator } = stage.harness.cluster;
  switch (fault.kind) {
    case 'kill':
      return kill(stage, fault.slot);
    case 'freeze':
      return freeze(stage, fault.slot);
    case 'suspend':
      return suspend(stage, fault.slot);
    case 'terminate':
    case 'cancel': {
      const { primary } = stage.harness.cluster.group(fault.groupid);
      return (await signalSessions(primary, fault.purpose, fault.kind)) > 0 ? nothing : undefined;
    }
    case 'stop coordinator':
      return stop(coordinator, fault.mode);
    case 'stop worker':
      return stop(stage.harness.cluster.group(fault.groupid).primary, fault.mode);
    case 'controller link':
      return harm(stage.slots[fault.slot]?.proxy, fault.how);
    case 'worker link':
      return harm(stage.workers.get(fault.groupid), fault.how);
    case 'read-only':
      return readOnly(coordinator);
    case 'xmin':
      return occupy(coordinator, 'BEGIN ISOLATION LEVEL REPEATABLE READ', [
        'SELECT pg_current_xact_id()',
      ]);
    case 'open transaction': {
      const key = await attempt(coordinator, (session) => freeKey(session, fault.groupid));
      return key === undefined
        ? undefined
        : occupy(coordinator, 'BEGIN', [`INSERT INTO notes VALUES (${key}, 0)`]);
    }
    case 'operator transaction':
      return occupy(coordinator, 'BEGIN', [
        `SELECT FROM mpp_tasks WHERE groupid = ${fault.groupid} AND finished_at IS NULL FOR UPDATE SKIP LOCKED`,
        'SELECT mpp_rebuild_cache()',
      ]);
    case 'lock':
      return occupy(coordinator, 'BEGIN', [lockStatement(fault.place, fault.groupid)]);
    case 'notifications':
      return once(
        coordinator,
        `SELECT pg_notify('mpp_tasks', n::text) FROM generate_series(1, $1) AS n`,
        [fault.count],
      );
    case 'rows':
      return once(coordinator, INSERT_ROWS, [fault.groupid, fault.count]);
  }
}

async function kill(stage: Stage, index: number): Promise<Lift | undefined> {
  const slot = stage.slots[index];
  if (slot?.controller === undefined) return undefined;
  await slot.kill();
  return () => {
    if (slot.controller === undefined) slot.start();
    return Promise.resolve();
  };
}

async function freeze(stage: Stage, index: number): Promise<Lift | undefined> {
  const slot = stage.slots[index];
  if (slot?.controller === undefined || slot.isFrozen) return undefined;
  const { controller } = slot;
  slot.freeze();
  return Promise.resolve(() => {
    if (slot.controller === controller) slot.thaw();
    return Promise.resolve();
  });
}

/** As a machine that is suspended: the controller stands still, and the server ends its sessions meanwhile. */
async function suspend(stage: Stage, index: number): Promise<Lift | undefined> {
  const thaw = await freeze(stage, index);
  if (thaw === undefined) return undefined;
  await attempt(stage.harness.cluster.coordinator, (session) =>
    session.query(
      `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.usename = $1`,
      [stage.slots[index]?.role],
    ),
  );
  return thaw;
}

async function stop(server: Server, mode: 'fast' | 'immediate'): Promise<Lift | undefined> {
  if (!server.isRunning) return undefined;
  await server.stop(mode);
  return () => server.start();
}

function harm(proxy: FaultProxy | undefined, how: LinkFault): Lift | undefined {
  if (proxy === undefined) return undefined;
  if (how === 'cut') proxy.cut();
  else if (how === 'half open') proxy.swallowOpen();
  else proxy.swallowAll();
  // A network loses a connection for good in the end, or its two ends would wait for ever.
  if (how === 'cut') return nothing;
  return () => {
    proxy.cut();
    return Promise.resolve();
  };
}

async function signalSessions(
  server: Server,
  purpose: Purpose,
  how: 'terminate' | 'cancel',
): Promise<number> {
  const call = how === 'terminate' ? 'pg_terminate_backend' : 'pg_cancel_backend';
  const count = await attempt(server, async (session) => {
    const { rows } = await session.query(
      `SELECT ${call}(a.pid) FROM pg_stat_activity AS a
       WHERE a.application_name LIKE $1
         AND a.application_name !~ '^mpp-controller (faults|test|observer)'`,
      [`mpp-controller ${purpose}%`],
    );
    return rows.length;
  });
  return count ?? 0;
}

async function readOnly(server: Server): Promise<Lift | undefined> {
  const set = async (statement: string): Promise<true> => {
    await server.withSession(async (session) => {
      await session.query(statement);
      await session.query('SELECT pg_reload_conf()');
    });
    return true;
  };
  if (!server.isRunning) return undefined;
  await set('ALTER SYSTEM SET default_transaction_read_only = on');
  return async () => {
    await server.start();
    await set('ALTER SYSTEM RESET default_transaction_read_only');
    // A procedure that runs on does not read the settings again; the stand-in's would fail for ever.
    await attempt(server, (session) => session.query(END_MAINTENANCE));
  };
}

/** A session that keeps a transaction open. */
async function occupy(
  server: Server,
  begin: string,
  statements: readonly string[],
): Promise<Lift | undefined> {
  if (!server.isRunning) return undefined;
  let session: Client | undefined;
  try {
    session = await server.connect('faults stranger');
    await session.query(`SET statement_timeout = ${STATEMENT_MS}`);
    await session.query('SET default_transaction_read_only = off');
    await session.query(begin);
    for (const statement of statements) await session.query(statement);
  } catch {
    await session?.end().catch(() => undefined);
    return undefined;
  }
  const open = session;
  return async () => {
    await open.query('ROLLBACK').catch(() => undefined);
    await open.end().catch(() => undefined);
  };
}

async function once(
  server: Server,
  statement: string,
  values: readonly unknown[],
): Promise<Lift | undefined> {
  const done = await attempt(server, async (session) => {
    await session.query('SET statement_timeout = 0');
    await session.query(statement, [...values]);
    return true;
  });
  return done === true ? nothing : undefined;
}

/** What `work` gives; undefined where the server is down or what it wants is locked. */
async function attempt<T>(
  server: Server,
  work: (session: Client) => Promise<T>,
): Promise<T | undefined> {
  if (!server.isRunning) return undefined;
  try {
    const session = await server.connect('faults striker');
    try {
      await session.query(
        `SET statement_timeout = ${STATEMENT_MS}; SET lock_timeout = ${STATEMENT_MS}`,
      );
      return await work(session);
    } finally {
      await session.end().catch(() => undefined);
    }
  } catch {
    return undefined;
  }
}

/** A key of the group that no other open transaction has: each takes the next one. */
async function freeKey(session: Client, groupid: number): Promise<number | undefined> {
  keys += 1;
  const [key] = await keysOfGroup(session, groupid, 1, 10_000 + keys * 100);
  return key;
}
let keys = 0;

function lockStatement(place: LockPlace, groupid: number): string {
  switch (place) {
    case 'tasks of the group':
      return `SELECT FROM mpp_tasks WHERE groupid = ${groupid} AND finished_at IS NULL FOR UPDATE`;
    case 'table mpp_tasks':
      return 'LOCK TABLE mpp_tasks IN ACCESS EXCLUSIVE MODE';
    case 'row of mpp_groups':
      return `SELECT FROM mpp_groups WHERE groupid = ${groupid} FOR UPDATE`;
    case 'row of mpp_leadership':
      return 'SELECT FROM mpp_leadership FOR UPDATE';
    case 'rows of mpp_controllers':
      return 'SELECT FROM mpp_controllers FOR UPDATE';
    case 'pg_dist_node':
      return 'LOCK TABLE pg_catalog.pg_dist_node IN ROW SHARE MODE';
  }
}

/** Each supersedes the one before it. */
const INSERT_ROWS = `
  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, timeout, cooldown)
  SELECT 'before_demote', $1, n.nodename, n.nodeport, '400 ms', '200 ms'
  FROM pg_dist_node AS n, generate_series(1, $2)
  WHERE n.groupid = $1 AND n.noderole = 'primary'`;

const END_MAINTENANCE = `
  SELECT pg_terminate_backend(a.pid)
  FROM pg_stat_activity AS a
  WHERE a.application_name = 'Citus stand-in maintenance'`;
