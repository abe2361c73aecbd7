import type { Client } from 'pg';
import type { Cluster, Server } from '../test/kit/servers/index.js';

/** Whose statements the servers log with their durations. */
export const LOGGED_ROLE = 'bench_controller';

/** Makes the role on all servers: only its statements are logged, so that the log costs traffic nothing. */
export async function makeLoggedRole(cluster: Cluster): Promise<void> {
  for (const { primary } of cluster.groups) {
    await primary.withSession(async (session) => {
      await session.query('SET citus.enable_ddl_propagation = off');
      await session.query(`CREATE ROLE ${LOGGED_ROLE} LOGIN SUPERUSER`);
      await session.query(`ALTER ROLE ${LOGGED_ROLE} SET log_min_duration_statement = 0`);
    });
  }
}

/** One look of the controller at a server's lock waits. */
export interface Look {
  /** `chains`: around the controller's sessions that wait. `waits`: of all sessions. */
  readonly kind: 'chains' | 'waits';
  /** What the server needed for it. */
  readonly ms: number;
}

/** Reads from the servers' logs what the controller's looks cost. */
export class LookLog {
  readonly #servers: readonly Server[];
  readonly #seen = new Map<Server, number>();

  constructor(servers: readonly Server[]) {
    this.#servers = servers;
  }

  /** The looks since the last call. */
  async take(): Promise<Look[]> {
    const looks: Look[] = [];
    for (const server of this.#servers) {
      const all = looksIn(await server.logTail(Number.MAX_SAFE_INTEGER));
      looks.push(...all.slice(this.#seen.get(server) ?? 0));
      this.#seen.set(server, all.length);
    }
    return looks;
  }
}

/** A statement has a line for each of its steps; it is planned while it is bound. */
const LINE =
  /\[(\d+)\] mpp-controller watch LOG: {2}duration: ([\d.]+) ms {2}(parse|bind|execute) mpp-(chains|waits):/;

function looksIn(log: string): Look[] {
  const looks: Look[] = [];
  const before = new Map<string, number>();
  for (const line of log.split('\n')) {
    const [, pid = '', duration = '', step, kind] = LINE.exec(line) ?? [];
    if (kind !== 'chains' && kind !== 'waits') continue;
    const ms = (before.get(pid) ?? 0) + Number(duration);
    if (step === 'execute') looks.push({ kind, ms });
    before.set(pid, step === 'execute' ? 0 : ms);
  }
  return looks;
}

/** How many locks a session of the controller has that the server would have to copy. */
export async function heldLocks(session: Client): Promise<number> {
  const { rows } = await session.query<{ count: number }>(HELD);
  return rows[0]?.count ?? 0;
}

const HELD = `
  SELECT count(*)::integer AS count
  FROM pg_locks AS l
  JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE a.application_name LIKE 'mpp-controller group %' AND l.granted`;
