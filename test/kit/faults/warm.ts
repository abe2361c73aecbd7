import { waitFor, type Server } from '../servers/index.js';

/** How many idle sessions at least a controller keeps with each entry node, by what they are for. */
const KEPT = { pause: 4, watch: 1 };

/** Waits until a controller has connected ahead to all of these servers, for the locks of a hold and for its checks. */
export async function waitUntilWarm(servers: readonly Server[]): Promise<void> {
  for (const server of servers) {
    for (const [purpose, count] of Object.entries(KEPT)) {
      await waitFor(`a controller to connect ahead to ${server.name} for ${purpose}`, () =>
        server.withSession(async (session) => {
          const { rowCount } = await session.query(IDLE, [`mpp-controller ${purpose}`]);
          return (rowCount ?? 0) >= count;
        }),
      );
    }
  }
}

const IDLE = `
  SELECT FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle'`;
