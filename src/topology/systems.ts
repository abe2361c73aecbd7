import type { Logger } from '../logger.js';
import { Loop } from '../wait.js';
import { isOfOtherGroup, type KnownSystem } from '../mpp/node-answer.js';
import type { Queryable } from '../postgres/queries.js';
import { errorText } from '../postgres/session.js';
import { type Address, formatAddress } from '../address.js';
import type { NodeChecker } from './node-checker.js';

/** What is known of a group's system. @returns null when nothing is. */
export async function readSystem(db: Queryable, groupid: number): Promise<KnownSystem | null> {
  const { rows } = await db.query<KnownSystem>({
    name: 'mpp-read-system',
    text: READ_SYSTEM,
    values: [groupid],
  });
  return rows[0] ?? null;
}

const READ_SYSTEM = `
  SELECT s.system_identifier AS "systemIdentifier", s.timeline, s.accepted_at IS NOT NULL AS "isAccepted"
  FROM @mpp.mpp_systems AS s
  WHERE s.groupid = $1`;

/** What a node has said that is, or becomes, the primary of its group. */
interface SeenSystem {
  readonly groupid: number;
  readonly address: Address;
  readonly systemIdentifier: string | null;
  readonly timeline: number | null;
}

/** Writes down what a node was confirmed with. It ends what an operator has accepted. */
export async function confirmSystem(db: Queryable, seen: SeenSystem): Promise<void> {
  await db.query({ name: 'mpp-confirm-system', text: CONFIRM_SYSTEM, values: valuesOf(seen) });
}

/** Locks the row of the group, until the statement commits. */
const CONFIRM_SYSTEM = `
  INSERT INTO @mpp.mpp_systems AS s (groupid, nodename, nodeport, system_identifier, timeline)
  VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (groupid) DO UPDATE
  SET system_identifier = coalesce(excluded.system_identifier, s.system_identifier),
      timeline = coalesce(excluded.timeline, s.timeline),
      nodename = excluded.nodename,
      nodeport = excluded.nodeport,
      since = CASE WHEN s.system_identifier IS DISTINCT FROM excluded.system_identifier
        THEN clock_timestamp() ELSE s.since END,
      accepted_at = NULL,
      forgotten = NULL
  WHERE (s.system_identifier, s.timeline, s.nodename, s.nodeport, s.accepted_at, s.forgotten) IS DISTINCT FROM
        (excluded.system_identifier, excluded.timeline, excluded.nodename, excluded.nodeport, NULL, NULL)`;

/**
 * Learns a group's system from its registered node. A system that is known already, and one that an
 * operator has had forgotten, stay as they are.
 */
export async function learnSystem(db: Queryable, seen: SeenSystem): Promise<void> {
  await db.query({ name: 'mpp-learn-system', text: LEARN_SYSTEM, values: valuesOf(seen) });
}

/** Locks the row of the group, until the statement commits. */
const LEARN_SYSTEM = `
  INSERT INTO @mpp.mpp_systems AS s (groupid, nodename, nodeport, system_identifier, timeline)
  VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (groupid) DO UPDATE
  SET system_identifier = coalesce(s.system_identifier, excluded.system_identifier),
      timeline = greatest(s.timeline, excluded.timeline),
      nodename = excluded.nodename,
      nodeport = excluded.nodeport,
      since = CASE WHEN s.system_identifier IS NULL THEN clock_timestamp() ELSE s.since END,
      accepted_at = NULL,
      forgotten = NULL
  WHERE (s.accepted_at IS NULL OR s.forgotten <> excluded.system_identifier)
    AND (s.system_identifier IS NULL OR s.system_identifier = excluded.system_identifier)
    AND (s.system_identifier, s.timeline, s.nodename, s.nodeport) IS DISTINCT FROM
        (excluded.system_identifier, excluded.timeline, excluded.nodename, excluded.nodeport)`;

function valuesOf({ groupid, address, systemIdentifier, timeline }: SeenSystem): unknown[] {
  return [groupid, address.host, address.port, systemIdentifier, timeline];
}

/** A registered primary, and the system that its group is known to be. */
interface RegisteredPrimary {
  readonly groupid: number;
  readonly address: Address;
  /** True when this node has not said the group's system yet. */
  readonly isNew: boolean;
  readonly systemIdentifier: string | null;
  readonly forgotten: string | null;
}

/**
 * The registered primary of every worker group.
 *
 * @param nodesQuery SELECT of the catalog's rows, see AbstractMPP.nodesQuery: a constant, never input.
 */
export async function readPrimaries(
  db: Queryable,
  nodesQuery: string,
): Promise<RegisteredPrimary[]> {
  const { rows } = await db.query<
    Omit<RegisteredPrimary, 'address'> & { nodename: string; nodeport: number }
  >({ name: 'mpp-read-primaries', text: primariesStatement(nodesQuery) });
  return rows.map(({ nodename, nodeport, ...rest }) => ({
    ...rest,
    address: { host: nodename, port: nodeport },
  }));
}

function primariesStatement(nodesQuery: string): string {
  return `
  SELECT n.groupid, n.nodename, n.nodeport, s.system_identifier AS "systemIdentifier", s.forgotten,
         s.timeline IS NULL OR (s.nodename, s.nodeport) IS DISTINCT FROM (n.nodename, n.nodeport) AS "isNew"
  FROM (${nodesQuery}) AS n
  LEFT JOIN @mpp.mpp_systems AS s ON s.groupid = n.groupid
  WHERE n.in_cluster AND n.noderole = 'primary' AND n.groupid <> 0`;
}

interface SystemLearnerOptions {
  readonly db: Queryable;
  /** See AbstractMPP.nodesQuery. */
  readonly nodesQuery: string;
  readonly checker: NodeChecker;
  readonly intervalMs: number;
  readonly signal: AbortSignal;
  readonly logger: Logger;
}

/** After so long a primary is asked again, so that its timeline is known. */
const AGAIN_MS = 600_000;
/** Groups that one round asks. */
const MOST_GROUPS = 64;
/** How long a round waits for answers. */
const ROUND_MS = 4_000;

/** Learns which system each group is, while its registered primary is up: once that is down it is too late. */
export class SystemLearner {
  readonly #options: SystemLearnerOptions;
  readonly #loop: Loop;
  readonly #askedAt = new Map<number, number>();
  readonly #said = new Map<number, string>();
  #failing = false;

  constructor(options: SystemLearnerOptions) {
    this.#options = options;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: () => this.#round(),
    });
  }

  start(): void {
    this.#loop.start();
  }

  /** A node may be about to go: learn what is not known yet. */
  wake(): void {
    this.#loop.wake();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  async #round(): Promise<void> {
    const { db, nodesQuery, checker, logger, signal } = this.#options;
    try {
      const now = performance.now();
      const due = (await readPrimaries(db, nodesQuery))
        .filter(
          ({ groupid, isNew }) =>
            isNew || now - (this.#askedAt.get(groupid) ?? -AGAIN_MS) >= AGAIN_MS,
        )
        // A group that does not answer must not keep others from being asked.
        .sort((one, other) => this.#triedAt(one) - this.#triedAt(other))
        .slice(0, MOST_GROUPS);
      const checks = await checker.askAll(
        due.map(({ address }) => address),
        ROUND_MS,
      );
      for (const [index, primary] of due.entries()) {
        this.#askedAt.set(primary.groupid, now);
        const check = checks[index];
        if (signal.aborted || check === undefined || !('answer' in check)) continue;
        const { inRecovery, localGroup, systemIdentifier, timeline } = check.answer;
        if (inRecovery || isOfOtherGroup(localGroup, primary.groupid)) continue;
        this.#compare(primary, systemIdentifier);
        await learnSystem(db, { ...primary, systemIdentifier, timeline });
      }
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) {
        logger.warn(
          { err: error },
          `which system each group is could not be read: ${errorText(error)}; trying again at the next heartbeat`,
        );
      }
      this.#failing = true;
    }
  }

  #triedAt({ groupid }: RegisteredPrimary): number {
    return this.#askedAt.get(groupid) ?? 0;
  }

  /** Says once that a registered primary is of another system: a failover of its group would be refused. */
  #compare(
    { groupid, address, ...known }: RegisteredPrimary,
    systemIdentifier: string | null,
  ): void {
    const wanted = known.systemIdentifier;
    const differs = wanted !== null && systemIdentifier !== null && wanted !== systemIdentifier;
    const said = differs ? systemIdentifier : '';
    if (said !== (this.#said.get(groupid) ?? '') && differs) {
      this.#options.logger.warn(
        { groupid, node: formatAddress(address), systemIdentifier, known: wanted },
        `the primary of group ${groupid} has another system identifier than its group is known to have; ` +
          `after pg_upgrade or a restore run SELECT mpp_accept_system(${groupid}), or its next failover is refused`,
      );
    }
    this.#said.set(groupid, said);
  }
}
