import { waitFor } from '../servers/index.js';
import type { Clinic, DoctorOptions } from './clinic.js';

/** Something that the doctor must find. */
export interface Fault {
  readonly id: string;
  readonly what: string;
  /** @returns what undoes it, also where its fix has done so already */
  readonly plant: (clinic: Clinic) => Promise<() => Promise<unknown>>;
  /** What else it makes wrong. */
  readonly also?: readonly string[];
  readonly node?: (clinic: Clinic) => string;
  readonly options?: (clinic: Clinic) => DoctorOptions;
  readonly env?: (clinic: Clinic) => NodeJS.ProcessEnv;
  readonly args?: readonly string[];
  /** False where the fix cannot be run here. */
  readonly paste?: false;
  /** Fills in what the doctor cannot know. */
  readonly complete?: (clinic: Clinic, fix: readonly string[]) => string[];
  /** False where the controller is to be stopped. */
  readonly controller?: false;
}

const nothing = () => Promise.resolve();
const coordinator = ({ coordinator: server }: Clinic) => server.address;
const primary = (groupid: number) => (clinic: Clinic) =>
  clinic.h.cluster.group(groupid).primary.address;
const asKeeper = () => ({ user: 'keeper' });

/** Statements on the coordinator that plant a fault, and those that undo it. */
function sql(plant: readonly string[], undo: readonly string[] = []): Fault['plant'] {
  return async (clinic) => {
    await clinic.on(clinic.coordinator, ...plant);
    return () => clinic.on(clinic.coordinator, ...undo);
  };
}

/** The same on the primary of a group. */
function sqlOn(
  groupid: number,
  plant: readonly string[],
  undo: readonly string[] = [],
): Fault['plant'] {
  return async (clinic) => {
    const server = clinic.h.cluster.group(groupid).primary;
    await clinic.on(server, ...plant);
    return () => clinic.on(server, ...undo);
  };
}

/** A parameter that takes effect with a restart. */
function parameter(groupid: number, name: string, value: string): Fault['plant'] {
  return async (clinic) => {
    const server = clinic.h.cluster.group(groupid).primary;
    await clinic.on(server, `ALTER SYSTEM SET ${name} = ${value}`);
    await clinic.restart(server);
    return async () => {
      await clinic.on(server, `ALTER SYSTEM RESET ${name}`);
      await clinic.restart(server);
    };
  };
}

const SETTING_FAULTS: readonly Fault[] = [
  {
    id: 'settings-unknown',
    what: 'a variable that is misspelt',
    plant: () => Promise.resolve(nothing),
    env: () => ({ MPP_SHEMA: 'x' }),
    paste: false,
  },
  {
    id: 'server-read-only',
    what: 'a role whose sessions take no writes',
    plant: sql(['ALTER ROLE keeper SET default_transaction_read_only = on']),
    options: asKeeper,
    node: coordinator,
  },
  {
    id: 'schema-missing',
    what: 'a schema that was not migrated',
    plant: sql([], ['DROP SCHEMA elsewhere, mpp_migrations_elsewhere CASCADE']),
    env: () => ({ MPP_SCHEMA: 'elsewhere' }),
    node: coordinator,
  },
  {
    id: 'schema-open',
    what: 'a schema where every role may create objects',
    plant: sql(['GRANT CREATE ON SCHEMA public TO PUBLIC']),
    node: coordinator,
  },
  {
    id: 'trigger-disabled',
    what: 'a trigger that does not fire',
    plant: sql(['ALTER TABLE mpp_tasks DISABLE TRIGGER mpp_tasks_4_notify']),
    node: coordinator,
  },
  {
    id: 'trigger-missing',
    what: 'a trigger that was dropped',
    plant: sql(['DROP TRIGGER mpp_tasks_2_log_update ON mpp_tasks']),
    node: coordinator,
  },
  {
    id: 'max-connections',
    what: 'more sessions than the server has for a controller',
    plant: () => Promise.resolve(nothing),
    env: () => ({ MPP_MAX_SESSIONS: '120' }),
    node: coordinator,
  },
  {
    id: 'guc-wal-level',
    what: 'a worker without logical decoding',
    plant: parameter(1, 'wal_level', 'replica'),
    node: primary(1),
  },
  {
    id: 'guc-max-worker-processes',
    what: 'a worker with too few background workers',
    plant: parameter(2, 'max_worker_processes', '9'),
    node: primary(2),
  },
  {
    id: 'restart-pending',
    what: 'a parameter that was changed without a restart',
    plant: sqlOn(
      1,
      ["ALTER SYSTEM SET shared_buffers = '33MB'", 'SELECT pg_reload_conf()'],
      ['ALTER SYSTEM RESET shared_buffers'],
    ),
    node: primary(1),
  },
  {
    id: 'patroni-citus',
    what: 'a Patroni that changes pg_dist_node as well',
    plant: ({ patroni }) => {
      patroni.config = { ttl: 30, citus: { group: 1, database: 'postgres' } };
      return Promise.resolve(() => Promise.resolve((patroni.config = {})));
    },
    env: ({ patroni }) => ({ MPP_PATRONI: `1=${patroni.url}` }),
    paste: false,
  },
  {
    id: 'patroni-unreachable',
    what: 'a Patroni that is not there',
    plant: () => Promise.resolve(nothing),
    env: () => ({ MPP_PATRONI: '1=http://127.0.0.1:9' }),
    paste: false,
  },
];

const RIGHT_FAULTS: readonly Fault[] = [
  {
    id: 'role-member',
    what: 'a role that is no member of mpp_controller',
    plant: sql(['REVOKE mpp_controller FROM keeper'], ['GRANT mpp_controller TO keeper']),
    options: asKeeper,
    node: coordinator,
  },
  {
    id: 'right-signal',
    what: 'a role that may not end sessions of a worker',
    plant: sqlOn(1, ['REVOKE pg_signal_backend FROM keeper']),
    options: asKeeper,
    node: primary(1),
  },
  {
    id: 'right-deadlock-timeout',
    what: 'a role that may not set deadlock_timeout on a worker',
    plant: sqlOn(2, ['REVOKE SET ON PARAMETER deadlock_timeout FROM keeper']),
    options: asKeeper,
    node: primary(2),
  },
  {
    id: 'right-tables',
    what: 'a table of another role',
    plant: sql(['ALTER TABLE notes OWNER TO shop'], ['ALTER TABLE notes OWNER TO app']),
    options: asKeeper,
    also: ['strategy'],
    node: coordinator,
  },
  {
    id: 'right-functions',
    what: 'a function of Citus that the role may not call',
    plant: sql([
      'REVOKE EXECUTE ON FUNCTION citus_pause_node_within_txn(integer, boolean, integer) FROM PUBLIC, mpp_controller',
    ]),
    options: asKeeper,
    node: coordinator,
  },
  {
    id: 'right-wrappers',
    what: 'a function of bootstrap that was dropped',
    plant: sql(['DROP FUNCTION mpp_add_node']),
    options: asKeeper,
    node: coordinator,
  },
  {
    id: 'right-verify',
    what: 'a worker that does not say which system it is',
    plant: sqlOn(1, ['REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC, keeper']),
    options: asKeeper,
    node: primary(1),
  },
];

const NODE_FAULTS: readonly Fault[] = [
  {
    id: 'coordinator-unregistered',
    what: 'no row for group 0',
    plant: sql(['DELETE FROM pg_dist_node WHERE groupid = 0']),
  },
  {
    id: 'node-inactive',
    what: 'a worker that is passed over',
    plant: sql(
      ["UPDATE pg_dist_node SET isactive = false WHERE groupid = 2 AND noderole = 'primary'"],
      ['UPDATE pg_dist_node SET isactive = true WHERE groupid = 2'],
    ),
    node: primary(2),
    paste: false,
  },
  {
    id: 'node-unsynced',
    what: 'a worker without the newest metadata',
    plant: sql(
      ["UPDATE pg_dist_node SET metadatasynced = false WHERE groupid = 2 AND noderole = 'primary'"],
      ["UPDATE pg_dist_node SET metadatasynced = true WHERE groupid = 2 AND noderole = 'primary'"],
    ),
    node: primary(2),
    paste: false,
  },
  {
    id: 'group-without-primary',
    what: 'a group whose primary is registered as a secondary',
    plant: sql(
      ["UPDATE pg_dist_node SET noderole = 'unavailable' WHERE groupid = 2 AND hasmetadata"],
      ["UPDATE pg_dist_node SET noderole = 'primary' WHERE groupid = 2 AND hasmetadata"],
    ),
    paste: false,
  },
  {
    id: 'node-silent',
    what: 'a worker that answers nothing',
    plant: async (clinic) => {
      const server = clinic.h.cluster.group(2).primary;
      await server.freeze();
      return () => server.thaw();
    },
    node: primary(2),
    paste: false,
  },
  {
    id: 'node-login',
    what: 'a worker that refuses the login',
    plant: sqlOn(1, ['ALTER ROLE keeper NOLOGIN'], ['ALTER ROLE keeper LOGIN']),
    options: asKeeper,
    node: primary(1),
  },
  {
    id: 'node-recovery',
    what: 'a standby that is registered as the primary',
    plant: async (clinic) => {
      const { primary: first, standby } = clinic.h.cluster.group(1);
      const move = (from: number, to: number) =>
        `UPDATE pg_dist_node SET nodeport = ${to} WHERE nodeport = ${from}`;
      const swap = [move(first.port, 1), move(standby.port, first.port), move(1, standby.port)];
      await clinic.on(clinic.coordinator, ...swap);
      return nothing;
    },
    node: (clinic) => clinic.h.cluster.group(1).standby.address,
  },
  {
    id: 'node-other-group',
    what: 'a worker that is of another group',
    plant: sqlOn(
      2,
      ['UPDATE pg_dist_local_group SET groupid = 7'],
      ['UPDATE pg_dist_local_group SET groupid = 2'],
    ),
    node: primary(2),
    paste: false,
  },
  {
    id: 'node-other-system',
    what: 'a worker that is another PostgreSQL cluster',
    plant: sql([
      `INSERT INTO mpp_systems (groupid, nodename, nodeport, system_identifier, timeline)
       SELECT groupid, nodename, nodeport, '1', 1 FROM pg_dist_node WHERE groupid = 2 AND noderole = 'primary'
       ON CONFLICT (groupid) DO UPDATE SET system_identifier = '1'`,
    ]),
    node: primary(2),
  },
];

const SESSION_FAULTS: readonly Fault[] = [
  {
    id: 'prepared-transaction',
    what: 'a change of pg_dist_node that pg_auto_failover has prepared',
    plant: sqlOn(1, [
      'BEGIN',
      'CREATE TABLE left_over ()',
      "PREPARE TRANSACTION 'master_update_node 1'",
    ]),
    node: primary(1),
  },
  {
    id: 'transaction-open',
    what: 'a transaction that does not end',
    plant: async (clinic) => {
      const session = await clinic.h.cluster.group(2).primary.connect('idle');
      // Not the name of a controller's session, which the doctor leaves out.
      await session.query("SET application_name = 'batch'");
      await session.query('BEGIN');
      await session.query('SELECT pg_current_xact_id()');
      return () => session.end().catch(() => undefined);
    },
    args: ['--older', '0s'],
    node: primary(2),
  },
  {
    id: 'slot-inactive',
    what: 'a slot that nothing reads',
    plant: sqlOn(1, ["SELECT pg_create_physical_replication_slot('left_over')"]),
    node: primary(1),
  },
  {
    id: 'standby-unregistered',
    what: 'a standby without a row',
    plant: async (clinic) => {
      const { host, port } = clinic.h.cluster.group(2).standby;
      await clinic.h.db.query('SELECT citus_remove_node($1, $2)', [host, port]);
      return nothing;
    },
    complete: (clinic, fix) =>
      fix.map((line) => line.replace('PORT', String(clinic.h.cluster.group(2).standby.port))),
    node: primary(2),
  },
];

const WORK_FAULTS: readonly Fault[] = [
  {
    id: 'leadership-blocked',
    what: 'a session that has locked the row of the leadership',
    plant: async (clinic) => {
      const session = await clinic.coordinator.connect('blocker');
      await session.query('BEGIN');
      await session.query('LOCK TABLE mpp_leadership IN EXCLUSIVE MODE');
      return () => session.end().catch(() => undefined);
    },
    controller: false,
  },
  {
    id: 'task-pending',
    what: 'a report that no controller takes',
    plant: async (clinic) => {
      const node = clinic.h.cluster.group(1).primary;
      await clinic.h.report({ event: 'after_promote', groupid: 1, node });
      return nothing;
    },
    args: ['--older', '0s'],
    controller: false,
  },
  {
    id: 'hold-late',
    what: 'a hold that does not end at its deadline',
    plant: sql([
      'SET session_replication_role = replica',
      `INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, timeout, cooldown, status, deadline, held_at)
       VALUES ('before_demote', 1, 'localhost', 1, '1 min', '1 s', 'holding', now() - interval '1 h', now())`,
    ]),
    controller: false,
  },
  {
    id: 'controller-versions',
    what: 'two controllers of different versions',
    plant: async (clinic) => {
      const second = clinic.h.spawnController({ MPP_TOPOLOGY: 'table' });
      const { pid } = second;
      const { db } = clinic.h;
      await waitFor('a second controller', async () => {
        const { rowCount } = await db.query(
          "UPDATE mpp_controllers SET version = '0.0.1' WHERE pid = $1",
          [pid],
        );
        return rowCount === 1;
      });
      return () => second.end();
    },
    paste: false,
  },
];

export const FAULTS: readonly Fault[] = [
  ...SETTING_FAULTS,
  ...RIGHT_FAULTS,
  ...NODE_FAULTS,
  ...SESSION_FAULTS,
  ...WORK_FAULTS,
];
