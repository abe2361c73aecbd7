import { expect, inject } from 'vitest';
import { waitUntilNothingHeld } from '../../kit/faults/hold-sessions.js';
import { Harness } from '../../kit/harness.js';
import { waitFor, type Server } from '../../kit/servers/index.js';
import { waitUntilSynced } from '../../kit/standin/observe.js';
import {
  APPLICATION_NAME,
  IDS_OF_PROGRAM,
  ITEMS_OF_SESSION,
  NOTES_OF_PROGRAM,
  SESSIONS,
  type Acknowledged,
  type ClientReport,
  type IdRange,
  type RunningClient,
  type StartClient,
} from './client.js';

/** Planned switchovers of group 1 in a test; each group has one standby, so an even number returns. */
const ROUNDS = Number(process.env['MPP_CLIENT_ROUNDS'] ?? 2);

/** Rows that each program inserts before and after a switchover. */
const PROGRESS = 10;

/** The cooldown and timeout of a report that names none. */
const DEFAULTS = { cooldown: '10s', timeout: '30s' } as const;

interface Program extends IdRange {
  readonly entry: Server;
  readonly client: RunningClient;
}

/**
 * A cluster of two worker groups with a controller in its default pause. Group 1 is switched over;
 * clients enter through the coordinator and through the primary of group 2.
 */
export class Stage {
  readonly harness: Harness;
  #programs = 0;

  private constructor(harness: Harness) {
    this.harness = harness;
  }

  static async open(): Promise<Stage> {
    const harness = await Harness.start({ template: inject('template') });
    try {
      await harness.startController({ MPP_PAUSE: 'auto' });
      await harness.db.query('INSERT INTO lookup VALUES (1, 0)');
      return new Stage(harness);
    } catch (error) {
      await harness.stop();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.harness.stop();
  }

  get entries(): readonly Server[] {
    const { cluster } = this.harness;
    return [cluster.coordinator, cluster.group(2).primary];
  }

  /**
   * Runs a client program on each entry node at once through planned switchovers. Expects that no
   * statement fails and that what each program was told is committed is there exactly once.
   */
  async expectUnharmed(start: StartClient): Promise<void> {
    await this.#expectUnharmed(start, ROUNDS);
  }

  /** The same with new client programs for each switchover. */
  async expectUnharmedEach(start: StartClient): Promise<void> {
    for (let round = 0; round < ROUNDS; round += 1) await this.#expectUnharmed(start, 1);
  }

  async #expectUnharmed(start: StartClient, rounds: number): Promise<void> {
    const programs: Program[] = [];
    let reports: ClientReport[] = [];
    try {
      for (const entry of this.entries) programs.push(await this.#start(entry, start));
      for (let round = 0; round < rounds; round += 1) {
        await this.#waitForProgress(programs);
        await this.#switchOver(programs);
        await this.#waitForProgress(programs);
        await this.harness.cluster.group(1).rejoin();
        await waitUntilSynced(this.harness.db);
      }
    } finally {
      reports = await Promise.all(programs.map(({ client }) => client.stop()));
      // Thrown instead of what failed because of it, such as too little progress.
      expectNoFailures(programs, reports);
    }
    await waitUntilNothingHeld(this.harness);
    for (const [index, program] of programs.entries()) {
      await this.#expectRows(program, reports[index]);
    }
  }

  async #start(entry: Server, start: StartClient): Promise<Program> {
    this.#programs += 1;
    const base = this.#programs * IDS_OF_PROGRAM;
    const { db } = this.harness;
    await db.query('BEGIN');
    for (let id = base + 1; id <= base + SESSIONS * ITEMS_OF_SESSION; id += 1) {
      await db.query('INSERT INTO items VALUES ($1, 0)', [id]);
    }
    for (let id = base + 1; id <= base + NOTES_OF_PROGRAM; id += 1) {
      await db.query('INSERT INTO notes VALUES ($1, 0)', [id]);
    }
    await db.query('COMMIT');
    return { base, entry, client: await start(entry.connection, { base }) };
  }

  /** Until each program has inserted further rows. */
  async #waitForProgress(programs: readonly Program[]): Promise<void> {
    for (const { base, entry } of programs) {
      const { inserted } = await this.#rows(entry, base);
      await waitFor(`clients to insert further rows through ${entry.name}`, async () => {
        const now = await this.#rows(entry, base);
        return now.inserted >= inserted + PROGRESS;
      });
    }
  }

  async #switchOver(programs: readonly Program[]): Promise<void> {
    const { harness } = this;
    const group = harness.cluster.group(1);
    const { primary: node, standby: next } = group;
    const report = { groupid: 1, ...DEFAULTS } as const;
    const demote = await harness.request({ ...report, event: 'before_demote', node });
    expect(demote).toMatchObject({ status: 'holding', reason: null });
    for (const { entry } of programs) await waitUntilClientsWait(entry);
    await group.primary.stop('fast');
    const promote = await harness.request({ ...report, event: 'before_promote', node: next });
    expect(promote.status).toBe('holding');
    await group.promoteStandby();
    const after = await harness.request({ ...report, event: 'after_promote', node: next });
    expect(after.status).toBe('done');
  }

  async #rows(server: Server, base: number): Promise<Acknowledged> {
    return server.withSession(async (db) => {
      const { rows } = await db.query<Acknowledged>(ROWS, [base, base + IDS_OF_PROGRAM]);
      const [found] = rows;
      if (found === undefined) throw new Error('an aggregate returned no row');
      return { ...found, inserted: found.inserted - SESSIONS * ITEMS_OF_SESSION };
    });
  }

  async #expectRows(program: Program, report: ClientReport | undefined): Promise<void> {
    expect(report?.inserted).toBeGreaterThan(0);
    const acknowledged = {
      inserted: report?.inserted,
      items: report?.items,
      notes: report?.notes,
    };
    for (const server of this.entries) {
      expect(await this.#rows(server, program.base)).toEqual(acknowledged);
    }
  }
}

function expectNoFailures(programs: readonly Program[], reports: readonly ClientReport[]): void {
  const failures = programs.map(({ entry }, index) => [entry.name, reports[index]?.failures]);
  const none = programs.map(({ entry }) => [entry.name, []]);
  expect(Object.fromEntries(failures)).toEqual(Object.fromEntries(none));
}

/** A hold that no client meets would prove nothing. */
async function waitUntilClientsWait(entry: Server): Promise<void> {
  await entry.withSession((db) =>
    waitFor(`a client to wait for the hold on ${entry.name}`, async () => {
      const { rowCount } = await db.query(WAITING, [APPLICATION_NAME]);
      return rowCount !== 0;
    }),
  );
}

const WAITING = `
  SELECT FROM pg_stat_activity
  WHERE application_name = $1 AND wait_event_type = 'Lock'`;

const ROWS = `
  SELECT i.inserted, i.items, n.notes
  FROM (
    SELECT count(*)::integer AS inserted, coalesce(sum(v), 0)::integer AS items
    FROM items
    WHERE id > $1 AND id <= $2
  ) AS i
  CROSS JOIN (
    SELECT coalesce(sum(v), 0)::integer AS notes
    FROM notes
    WHERE id > $1 AND id <= $2
  ) AS n`;
