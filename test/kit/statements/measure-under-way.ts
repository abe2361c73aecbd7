import { waitUntilSynced } from '../standin/observe.js';
import { waitFor } from '../servers/index.js';
import { StatementClient, type Answer } from './client.js';
import type { Target } from './kinds.js';
import type { Fate } from './measure.js';
import { CONTROLLERS, type Entry, type Pause, type Stage } from './stage.js';
import type { UnderWayKind } from './under-way.js';

/** What happens to what was under way before a group was held. */
export interface UnderWayOutcome {
  /** How it ended before the group was held; only if it did. */
  readonly ended?: Answer;
  /** Whether the hold is what was asked for: not, if reads pass under `all`. */
  readonly whole: boolean;
  /** Its next statement, sent while the group is held. */
  readonly held?: Fate;
  /** Its end, unless it ended before. */
  readonly end?: Answer;
}

/** The application name of the session that stalls a statement. */
const STALL = 'stall';

/** Begins one of these, holds the group, and switches it over. */
export async function measureUnderWay(
  stage: Stage,
  kind: UnderWayKind,
  pause: Pause,
  entry: Entry,
): Promise<UnderWayOutcome> {
  await stage.renewController();
  await stage.run(stage.h.cluster.coordinator, kind.setup);
  const target = stage.nextTarget()(1);
  const stall = await stallFor(stage, kind, target);
  const client = await stage.client(entry);
  const refused = await begin(stage, client, kind, target);
  if (refused) {
    await Promise.all([client.end(), stall?.end()]);
    return { ended: refused, whole: true };
  }

  const task = await stage.h.acknowledged(await stage.reportDemote(pause));
  if (task.status !== 'holding') {
    throw new Error(`beside ${kind.name} the hold is ${task.status}: ${task.reason ?? ''}`);
  }
  const ended = kind.stalledBy || kind.sleeps ? client.answer : client.lost;
  const whole = pause === 'writes' || (await stage.readsWait(entry));
  const held = ended ? undefined : await thenWhileHeld(stage, client, kind, target);

  await stage.stopPrimary();
  const sync = await stage.commitUnsynced();
  await sync();
  await waitUntilSynced(stage.h.db);
  await stall?.end();
  const end = ended ? undefined : await endOf(client, kind, target);

  await client.end();
  await stage.restore();
  await stage.run(stage.h.cluster.coordinator, kind.cleanup);
  return { ...(ended && { ended }), whole, ...(held && { held }), ...(end && { end }) };
}

async function stallFor(
  stage: Stage,
  { stalledBy }: UnderWayKind,
  target: Target,
): Promise<StatementClient | undefined> {
  if (stalledBy === undefined) return undefined;
  const isOwn = stalledBy.group === 'own';
  const { primary } = stage.h.cluster.group(isOwn ? 1 : 2);
  const shard = await stage.shardOf(isOwn ? target.own : target.other);
  const session = await StatementClient.connect(primary, STALL);
  await session.run(stalledBy.statements.map((text) => text.replace('SHARD', shard)));
  return session;
}

/**
 * Returns once the last statement is stalled or sleeps, or, where nothing stalls it, has its answer.
 *
 * @returns its failure, if this node does not take it.
 */
async function begin(
  stage: Stage,
  client: StatementClient,
  { name, begun, stalledBy, sleeps }: UnderWayKind,
  target: Target,
): Promise<Answer | undefined> {
  client.send(begun(target));
  await waitFor(`${name} to be under way`, async () => {
    if (client.answer !== undefined) return true;
    if (sleeps) return client.sleeps(stage.primaries);
    return stalledBy && client.waitsFor(stage.primaries, `^${STALL}$`);
  });
  return client.answer?.failed ? client.answer : undefined;
}

async function thenWhileHeld(
  stage: Stage,
  client: StatementClient,
  { name, then }: UnderWayKind,
  target: Target,
): Promise<Fate | undefined> {
  if (then?.when !== 'held') return undefined;
  client.send(then.sent(target));
  return waitFor(`the rest of ${name} to wait or to end`, async () => {
    if (client.answer !== undefined) return client.answer;
    return (await client.waitsFor(stage.primaries, CONTROLLERS)) && ('waits' as const);
  });
}

async function endOf(
  client: StatementClient,
  { name, then }: UnderWayKind,
  target: Target,
): Promise<Answer> {
  if (then?.when === 'committed') client.send(then.sent(target));
  return waitFor(`${name} to end`, () => Promise.resolve(client.answer));
}
