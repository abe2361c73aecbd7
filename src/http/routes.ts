import { errorText } from '../postgres/session.js';
import type { Metrics } from './metrics.js';
import type { ObservedDatabase } from './observed-database.js';
import { type Answer, type Route, text } from './server.js';

/** The routes for machines. With several databases a probe is well when it is for each of them. */
export function machineRoutes(metrics: Metrics, databases: readonly ObservedDatabase[]): Route[] {
  return [
    {
      path: '/livez',
      description: '200 while the controller works; 503 when its loop stands: restart it',
      answer: () => probe(databases, ({ isStuck }) => !isStuck),
    },
    {
      path: '/readyz',
      description: '200 while it has a session with the database, active or standing by',
      answer: () => probe(databases, ({ isReady }) => isReady),
    },
    {
      path: '/active',
      description: '200 on the active controller alone, 503 on each other one',
      answer: () => probe(databases, ({ isActive }) => isActive),
    },
    {
      path: '/metrics',
      description: 'for Prometheus',
      answer: () => scrape(metrics, databases),
    },
    {
      path: '/status.json',
      description: 'what mpp-controller status --json prints',
      answer: () => statusJson(databases),
    },
  ];
}

/** Asks no server. */
function probe(
  databases: readonly ObservedDatabase[],
  isWell: (database: ObservedDatabase) => boolean,
): Promise<Answer> {
  const lines = databases.map(({ database, state }) =>
    database === undefined ? state : `${database}: ${state}`,
  );
  return Promise.resolve(text(databases.every(isWell) ? 200 : 503, lines.join('\n')));
}

async function scrape(metrics: Metrics, databases: readonly ObservedDatabase[]): Promise<Answer> {
  const states = await Promise.all(databases.map((one) => one.clusterState()));
  // Without a wait in between: a scrape at the same time sees all of it.
  metrics.forgetCluster();
  for (const [index, database] of databases.entries()) database.show(states[index]);
  return { status: 200, type: metrics.contentType, body: await metrics.text() };
}

async function statusJson(databases: readonly ObservedDatabase[]): Promise<Answer> {
  const type = 'application/json; charset=utf-8';
  const json = (status: number, value: unknown): Answer => ({
    ...{ status, type },
    body: `${JSON.stringify(value, null, 2)}\n`,
  });
  try {
    const statuses = await Promise.all(
      databases.map(async (one) => [one.database, await one.status()] as const),
    );
    const [[database, only] = []] = statuses;
    return json(200, database === undefined ? only : Object.fromEntries(statuses));
  } catch (error) {
    return json(503, { error: `the database cannot be asked: ${errorText(error)}` });
  }
}
