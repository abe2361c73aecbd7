import { waitFor, type Server } from '../test/support/servers/index.js';

/** Waits until the controller has connected ahead to all of these servers, as one that has run for a while has. */
export async function waitUntilWarm(servers: readonly Server[]): Promise<void> {
  for (const server of servers) {
    await waitFor('the controller to connect ahead', () =>
      server.withSession(async (session) => {
        const { rowCount } = await session.query(`
          SELECT
          FROM pg_stat_activity
          WHERE application_name = 'mpp-controller pause'
            AND state = 'idle'`);
        return (rowCount ?? 0) >= 4;
      }),
    );
  }
}
