import { once } from 'node:events';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import type { ControllerProcess } from '../kit/controller-process.js';
import { FaultProxy } from '../kit/faults/proxy.js';
import { Harness } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

let h: Harness;

beforeAll(async () => {
  h = await Harness.start({ template: inject('template'), groups: 1, standbys: false });
});
afterAll(async () => h.stop());

/** A server that refuses each login with one SQLSTATE, and remembers when. */
class RefusingServer {
  readonly attempts: number[] = [];
  readonly #server: Server;

  constructor(sqlstate: string, message: string) {
    const fields = `SFATAL\0C${sqlstate}\0M${message}\0\0`;
    const answer = Buffer.alloc(5 + Buffer.byteLength(fields));
    answer.write('E');
    answer.writeInt32BE(4 + Buffer.byteLength(fields), 1);
    answer.write(fields, 5);
    this.#server = createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => {
        this.attempts.push(performance.now());
        socket.end(answer);
      });
    });
  }

  async start(): Promise<number> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  stop(): void {
    this.#server.close();
  }
}

/** With one connection for each attempt: without TLS none is made again in plain. */
function spawnWarning(port: number): ControllerProcess {
  const DATABASE_URL = `postgres://postgres@127.0.0.1:${port}/postgres?sslmode=disable`;
  return h.spawnController({ MPP_LOG_LEVEL: 'warn', DATABASE_URL });
}

describe('a controller whose login is refused at its start', () => {
  let server: RefusingServer | undefined;
  let controller: ControllerProcess | undefined;

  afterEach(async () => {
    await controller?.end('SIGKILL');
    server?.stop();
  });

  it.each([
    ['28P01', 'password authentication failed', 'check the user and the password in DATABASE_URL'],
    ['28000', 'no pg_hba.conf entry', 'pg_hba.conf'],
    ['3D000', 'database "x" does not exist', 'check the database in DATABASE_URL'],
    ['42501', 'permission denied for database "x"', 'mpp_controller'],
  ])(
    'with %s (%s): says once what to do, and tries more and more rarely',
    async (code, text, advice) => {
      const refusing = new RefusingServer(code, text);
      server = refusing;
      const port = await refusing.start();
      controller = spawnWarning(port);
      await waitFor('five attempts', () => Promise.resolve(refusing.attempts.length >= 5));
      const gaps = refusing.attempts
        .slice(1)
        .map((at, index) => at - (refusing.attempts[index] ?? 0));
      [240, 490, 990, 1_990].forEach((least, index) => {
        expect(gaps[index]).toBeGreaterThanOrEqual(least);
      });
      expect(controller.log).toHaveLength(1);
      expect(controller.log[0]).toMatchObject({
        level: 'warn',
        msg: expect.stringContaining(advice) as string,
      });
      expect(controller.log[0]?.msg).toContain(text);
      expect(await controller.end('SIGTERM')).toBe(0);
    },
  );

  it('with 57P03, as a server that is starting up says: tries as often as before', async () => {
    const refusing = new RefusingServer('57P03', 'the database system is starting up');
    server = refusing;
    const port = await refusing.start();
    controller = spawnWarning(port);
    const began = performance.now();
    await waitFor('eight attempts', () => Promise.resolve(refusing.attempts.length >= 8));
    expect(performance.now() - began).toBeLessThan(15_000);
    expect(controller.log).toHaveLength(1);
  });
});

describe('a controller whose role may no longer log in', () => {
  it('does not try with each of its sessions again and again, and works again once it may', async () => {
    const proxy = await FaultProxy.start(h.cluster.coordinator);
    await h.db.query('CREATE ROLE holder LOGIN SUPERUSER');
    const controller = h.spawnController({
      DATABASE_URL: `postgres://holder@127.0.0.1:${proxy.port}/postgres?sslmode=disable`,
    });
    try {
      await controller.active();
      await h.db.query('ALTER ROLE holder NOLOGIN');
      await h.db.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'holder'",
      );
      await controller.logged(
        'why',
        ({ msg, level }) =>
          level === 'warn' && msg.includes('not permitted to log in; check the user'),
      );
      // Several sessions may be refused at the same moment; what grows is the time until the next attempt.
      let [seen, since] = [proxy.connections, performance.now()];
      await waitFor(
        'three seconds without an attempt',
        () => {
          if (proxy.connections !== seen) [seen, since] = [proxy.connections, performance.now()];
          return Promise.resolve(performance.now() - since > 3_000);
        },
        { timeoutMs: 60_000 },
      );
      const active = (): number =>
        controller.log.filter(({ msg }) => msg.startsWith('active,')).length;
      const times = active();
      await h.db.query('ALTER ROLE holder LOGIN');
      await waitFor('it to be active again', () => Promise.resolve(active() > times), {
        timeoutMs: 60_000,
      });
    } finally {
      await controller.end('SIGKILL');
      await proxy.stop();
    }
  });
});
