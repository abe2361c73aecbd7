import type { ClientBase } from 'pg';
import type { Server } from './server.js';

export interface LockSessionOptions {
  readonly server: Server;
  /** The server process. */
  readonly pid: number;
  /** The session; a function, so that it can refuse once its transaction has ended. */
  readonly client: () => ClientBase;
  /** True when the transaction has FIRST_SAVEPOINT already. */
  readonly marked?: boolean;
  /** Called when it begins. */
  readonly onActive: () => void;
}
