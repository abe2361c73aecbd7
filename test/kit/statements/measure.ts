import { waitFor } from '../servers/index.js';
import type { Answer, StatementClient } from './client.js';
import type { StatementKind, Target } from './kinds.js';
import { CONTROLLERS, type Entry, type Pause, type Stage } from './stage.js';

/** What has become of a statement at one point: it waits for a hold, or has its answer. */
export type Fate = 'waits' | Answer;

/** What happens to a kind of statement while a group is held. */
export interface Outcome {
  /** While the group's primary is up. */
  readonly held: Fate;
  /** The same statement sent once the primary is stopped, if the first one passed. */
  readonly stopped?: Fate;
  /** What has waited, in the end. */
  readonly end?: Answer;
}

interface Running {
  readonly kind: StatementKind;
  readonly target: (attempt: Target['attempt']) => Target;
  readonly clients: StatementClient[];
  held?: Fate;
  stopped?: Fate;
  end?: Answer;
}

/**
 * Holds the group, sends statements of these kinds, and switches the group over.
 *
 * @param kinds that do not wait for one another.
 * @returns their outcomes, in the same order.
 */
export async function measureStatements(
  stage: Stage,
  kinds: readonly StatementKind[],
  pause: Pause,
  entry: Entry,
): Promise<Outcome[]> {
  const { coordinator } = stage.h.cluster;
  const server = stage.entry(entry);
  const all: Running[] = [];
  for (const kind of kinds) {
    await stage.run(coordinator, kind.setup);
    await stage.run(server, kind.setupAtEntry);
    const target = stage.nextTarget();
    const client = await stage.client(entry);
    await client.run(kind.earlier?.(target(1)) ?? []);
    all.push({ kind, target, clients: [client] });
  }
  await stage.hold(pause);
  for (const one of all) one.held = await sendOne(stage, one, 1);
  await stage.stopPrimary();
  for (const one of all.filter(passes)) {
    const client = await stage.client(entry);
    one.clients.push(client);
    await client.run(one.kind.earlier?.(one.target(2)) ?? []).catch(() => undefined);
    one.stopped = await sendOne(stage, one, 2);
  }
  const sync = await stage.commitUnsynced();
  try {
    for (const one of all.filter(isWaiting)) await afterCommit(stage, one, entry);
  } finally {
    await sync();
  }
  for (const one of all.filter(isWaiting)) one.end = await answerOf(one);
  for (const { clients } of all) await Promise.all(clients.map((client) => client.end()));
  await stage.restore();
  for (const { kind } of all) {
    await stage.run(coordinator, kind.cleanup);
    await stage.run(server, kind.cleanupAtEntry);
  }
  return all.map(({ held, stopped, end }) => {
    if (held === undefined) throw new Error('a statement was not sent');
    return { held, ...(stopped && { stopped }), ...(end && { end }) };
  });
}

function passes({ held }: Running): boolean {
  return held !== undefined && held !== 'waits' && !held.failed;
}

function isWaiting({ held, stopped }: Running): boolean {
  return held === 'waits' || stopped === 'waits';
}

async function sendOne(stage: Stage, one: Running, attempt: 1 | 2): Promise<Fate> {
  const client = lastOf(one);
  client.send(one.kind.sent(one.target(attempt)));
  return waitFor(`${one.kind.name} to wait or to end`, async () => {
    if (client.answer !== undefined) return client.answer;
    return (await client.waitsFor(stage.primaries, CONTROLLERS)) && ('waits' as const);
  });
}

/** Until it is through, has failed, or waits on for what ends once the nodes are in sync: a lock that the hold keeps, or the sync. */
async function afterCommit(stage: Stage, one: Running, entry: Entry): Promise<void> {
  const client = lastOf(one);
  await waitFor(`${one.kind.name} to go on, or to be kept`, async () => {
    if (client.answer !== undefined) return true;
    if (entry === 'coordinator' && !(await stage.coordinatorIsDone())) return false;
    return client.waitsFor(stage.primaries, `${CONTROLLERS}|${await stage.syncPattern()}`);
  });
}

async function answerOf(one: Running): Promise<Answer> {
  return waitFor(`${one.kind.name} to end`, () => Promise.resolve(lastOf(one).answer));
}

function lastOf({ clients }: Running): StatementClient {
  const client = clients.at(-1);
  if (client === undefined) throw new Error('a statement has no client');
  return client;
}
