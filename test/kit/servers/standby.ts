import type { Client } from 'pg';
import { copyRunningData } from './data-folder.js';
import { removeFolder } from './folder.js';
import type { Server } from './server.js';
import { waitFor } from './wait.js';

/**
 * Makes `standby` a streaming standby of `primary` and starts it: the data is copied anew from the
 * running primary, whatever the folder had before. Resolves once it streams.
 *
 * @param standby a server that is not running.
 */
export async function cloneFrom(primary: Server, standby: Server): Promise<void> {
  if (standby.isRunning) throw new Error(`server ${standby.name} runs; stop it before cloning`);
  await removeFolder(standby.data);
  const label = await primary.withSession((session) => backup(session, primary, standby));
  await standby.writeData('backup_label', label);
  await follow(primary, standby);
  await standby.start();
  await waitUntilStreaming(primary, standby);
}

/** Lets `standby`, whose data comes from `primary`, stream from it from its next start on. */
export async function follow(primary: Server, standby: Server): Promise<void> {
  await standby.writeData('standby.signal', '');
  standby.configure({
    primary_conninfo: `host=${primary.host} port=${primary.port} user=postgres application_name=${standby.name}`,
  });
}

/** Resolves when `standby` streams from `primary`. */
export async function waitUntilStreaming(primary: Server, standby: Server): Promise<void> {
  await primary.withSession((session) =>
    waitFor(
      `${standby.name} to stream from ${primary.name}`,
      async () => {
        const { rows } = await session.query(IS_STREAMING, [standby.name]);
        return rows.length > 0;
      },
      { timeoutMs: 30_000 },
    ),
  );
}

/** Resolves when `standby` has replayed all that `primary` has written so far. */
export async function waitUntilReplayed(primary: Server, standby: Server): Promise<void> {
  const lsn = await primary.withSession(async (session) => {
    const { rows } = await session.query<{ lsn: string }>(CURRENT_LSN);
    return rows[0]?.lsn;
  });
  await standby.withSession((session) =>
    waitFor(`${standby.name} to replay up to ${String(lsn)}`, async () => {
      const { rows } = await session.query<{ replayed: boolean }>(HAS_REPLAYED, [lsn]);
      return rows[0]?.replayed;
    }),
  );
}

/** Backup mode ends with its session, so start, copy and stop share one. */
async function backup(session: Client, primary: Server, standby: Server): Promise<string> {
  await session.query(START_BACKUP, [standby.name]);
  await copyRunningData(primary.data, standby.data, standby.binaries);
  const { rows } = await session.query<{ labelfile: string }>(STOP_BACKUP);
  const label = rows[0]?.labelfile;
  if (label === undefined) throw new Error(`${primary.name} gave no backup label`);
  return label;
}

const START_BACKUP = 'SELECT pg_backup_start($1, fast => true)';
const STOP_BACKUP = 'SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)';
const IS_STREAMING = `
  SELECT 1
    FROM pg_stat_replication
   WHERE application_name = $1
     AND state = 'streaming'`;
const CURRENT_LSN = 'SELECT pg_current_wal_lsn()::text AS lsn';
const HAS_REPLAYED = 'SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn AS replayed';
