import { once } from 'node:events';
import { connect } from 'node:net';
import { isErrno } from '../test/kit/servers/processes.js';
import type { Server } from '../test/kit/servers/index.js';
import { waitFor } from '../test/kit/servers/wait.js';

const INTERVAL_MS = 5;

/** Resolves once a connection to the server is refused, which its clients notice as well. */
export async function waitUntilRefused(server: Server): Promise<void> {
  const what = `${server.name} to refuse connections`;
  await waitFor(what, () => refuses(server), { intervalMs: INTERVAL_MS });
}

async function refuses({ host, port }: Server): Promise<boolean> {
  const socket = connect({ host, port });
  try {
    await once(socket, 'connect');
    return false;
  } catch (error) {
    return isErrno(error, 'ECONNREFUSED');
  } finally {
    socket.destroy();
  }
}
