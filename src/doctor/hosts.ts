import type pg from 'pg';
import type { AbstractMPP, WantedByName } from '../mpp/abstract.js';
import { isSameServer, type NodeAnswer } from '../mpp/node-answer.js';
import { nodeConnection, type NodeCredentials } from '../postgres/connection/database-url.js';
import { closeSession, errorText, isMissingDatabase, openSession } from '../postgres/session.js';
import { isLoginRefused } from '../postgres/sqlstate.js';
import { formatAddress } from '../address.js';
import { within } from '../wait.js';
import { readLocal } from './local.js';
import type { CatalogSeen, Failure, GucSeen, HostSeen, NodeSeen, Silence } from './observed.js';
import { Parts } from './parts.js';

/** How long a server may take to answer, in milliseconds. */
export const ANSWER_MS = 2_000;

/** What is looked for on every server. */
export interface HostQuestions {
  readonly mpp: AbstractMPP;
  readonly credentials: NodeCredentials;
  readonly wanted: WantedByName;
  readonly olderMs: number;
  readonly catalog: CatalogSeen;
  readonly failures: Failure[];
}

const UNREAD = { local: null, gucs: null, rights: null, locks: null };

/** The coordinator itself, on the session that there is. */
export async function readCoordinator(
  session: pg.Client,
  node: string,
  questions: HostQuestions,
): Promise<HostSeen> {
  const row = questions.catalog.nodes.find(
    ({ groupid, role }) => groupid === 0 && role === 'primary',
  );
  const answer = await (await questions.mpp.prepareAsking(session))();
  const { local, gucs, locks } = await readParts(session, node, questions);
  const place = { node, groupid: 0, role: 'primary', nodeid: row?.nodeid ?? null } as const;
  return { ...place, isCoordinator: true, answer, local, gucs, rights: null, locks };
}

/** Each node of pg_dist_node, all at once. Never throws. */
export async function readNodes(
  coordinator: NodeAnswer | undefined,
  questions: HostQuestions,
): Promise<HostSeen[]> {
  const rows = questions.catalog.nodes.filter(
    ({ role, isInCluster }) => isInCluster && role !== 'unavailable',
  );
  return Promise.all(rows.map((row) => readNode(row, coordinator, questions)));
}

async function readNode(
  row: NodeSeen,
  coordinator: NodeAnswer | undefined,
  questions: HostQuestions,
): Promise<HostSeen> {
  const node = formatAddress(row.address);
  const role = row.role === 'primary' ? 'primary' : 'secondary';
  const place = {
    node,
    groupid: row.groupid,
    role,
    nodeid: row.nodeid,
    isCoordinator: false,
  } as const;
  const opened = await open(row, questions);
  if ('silence' in opened) return { ...place, ...UNREAD, answer: opened };
  const { session, answer } = opened;
  try {
    const isKnown = coordinator !== undefined && isSameServer(answer, coordinator);
    if (isKnown) return { ...place, ...UNREAD, answer };
    return { ...place, answer, ...(await readParts(session, node, questions)) };
  } finally {
    await closeSession(session);
  }
}

type Opened = { readonly session: pg.Client; readonly answer: NodeAnswer };

async function open(row: NodeSeen, questions: HostQuestions): Promise<Opened | Silence> {
  const bounds = { connectionTimeoutMillis: ANSWER_MS, query_timeout: ANSWER_MS };
  const connection = { ...nodeConnection(questions.credentials, row.address), ...bounds };
  const opening = openSession(connection, 'doctor').then(async (session) => {
    try {
      return { session, answer: await (await questions.mpp.prepareAsking(session))() };
    } catch (error) {
      session.connection.stream.destroy();
      throw error;
    }
  });
  const late = {
    silence: `no answer within ${ANSWER_MS} ms`,
    isRefused: false,
    isMissingDatabase: false,
  };
  try {
    const opened = await within(ANSWER_MS, opening, late);
    // What comes too late is closed, and its error is of no interest.
    if (opened === late)
      void opening.then(
        ({ session }) => closeSession(session),
        () => undefined,
      );
    return opened;
  } catch (error) {
    return {
      silence: errorText(error),
      isRefused: isLoginRefused(error),
      isMissingDatabase: isMissingDatabase(error),
    };
  }
}

async function readParts(
  session: pg.ClientBase,
  node: string,
  { mpp, wanted, olderMs, catalog, failures }: HostQuestions,
): Promise<Pick<HostSeen, 'local' | 'gucs' | 'rights' | 'locks'>> {
  const parts = new Parts(node, failures);
  const local = await parts.read('sessions, slots and prepared transactions', 'pg_monitor', () =>
    readLocal(session, olderMs),
  );
  const gucs = await parts.read('the parameters of the server', 'pg_read_all_settings', () =>
    readGucs(session, mpp, wanted),
  );
  if (!(await hasCatalog(session, parts))) return { local, gucs, rights: null, locks: null };
  const groupids = [...new Set(catalog.nodes.map(({ groupid }) => groupid))].filter(Boolean);
  const rights = await parts.read('the rights of this role', 'mpp_controller', () =>
    mpp.missingNodeRights(session),
  );
  const locks = await parts.read('the shards of the groups', 'mpp_controller', () =>
    mpp.readLockNeeds(session, groupids),
  );
  return { local, gucs, rights, locks };
}

/** A node that has no metadata is locked nothing on. */
async function hasCatalog(session: pg.ClientBase, parts: Parts): Promise<boolean> {
  const text = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS present";
  const found = await parts.read('the catalog of Citus', 'mpp_controller', () =>
    session.query<{ present: boolean }>(text),
  );
  return found?.rows[0]?.present === true;
}

async function readGucs(
  session: pg.ClientBase,
  mpp: AbstractMPP,
  wanted: WantedByName,
): Promise<GucSeen[]> {
  const { states, changes } = await mpp.planGucs(session, wanted);
  const { rows } = await session.query<{ needed: boolean }>(NEEDS_LIBRARY);
  return changes
    .filter(({ name }) => name !== 'shared_preload_libraries' || rows[0]?.needed === true)
    .map((change) => ({
      ...change,
      needsRestart: states.get(change.name)?.needsRestart !== false,
    }));
}

/** Whether the functions of Citus in this database are those of its library. */
const NEEDS_LIBRARY = `
  SELECT EXISTS (
    SELECT
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = 'citus_version' AND p.probin LIKE '%citus%'
  ) AS needed`;
