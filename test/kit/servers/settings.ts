import type { Binaries } from './binaries.js';

/** Settings of one server, as in postgresql.conf. */
export type Settings = Readonly<Record<string, string | number | boolean>>;

/**
 * What every test server has: nothing is kept safe on disk, everything that replication, Citus and
 * prepared transactions need is on, and a standby never waits seconds before it tries again.
 */
export const TEST_SETTINGS: Settings = {
  fsync: false,
  full_page_writes: false,
  // Sockets have a path of limited length and outlive a crash; the loopback address is enough.
  unix_socket_directories: '',
  listen_addresses: '127.0.0.1',
  max_connections: 200,
  max_prepared_transactions: 100,
  max_wal_senders: 10,
  max_replication_slots: 10,
  wal_level: 'logical',
  hot_standby: true,
  wal_keep_size: '128MB',
  wal_retrieve_retry_interval: '100ms',
  shared_buffers: '32MB',
  checkpoint_timeout: '1h',
  // Kept in the data folder, so that it goes with the folder after a SIGKILL, too.
  dynamic_shared_memory_type: 'mmap',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_line_prefix: '%m [%p] %a ',
};

/** What Citus needs besides. Without `sslmode=disable` it makes certificates and turns ssl on. */
export const CITUS_SETTINGS: Settings = {
  shared_preload_libraries: 'citus',
  'citus.node_conninfo': 'sslmode=disable',
  'citus.local_hostname': '127.0.0.1',
  // As `mpp-controller gucs` sets it.
  'citus.metadata_sync_retry_interval': '200ms',
  'citus.enable_statistics_collection': false,
};

/** The settings that servers of these binaries start from. */
export function baseSettings(binaries: Binaries): Settings {
  return binaries.hasCitus ? { ...TEST_SETTINGS, ...CITUS_SETTINGS } : TEST_SETTINGS;
}

/** The text of a postgresql.conf. */
export function renderSettings(settings: Settings): string {
  return Object.entries(settings)
    .map(([name, value]) => `${name} = ${renderValue(value)}\n`)
    .join('');
}

function renderValue(value: string | number | boolean): string {
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  return `'${String(value).replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
}
