import pino from 'pino';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { HttpServer, isLoopback, isLoopbackName, text } from '../../src/http/server.js';
import { SharedReading } from '../../src/http/server-reader.js';
import { ask, sendRaw } from '../kit/http.js';
import { PortAllocator } from '../kit/servers/ports.js';

const ports = new PortAllocator();
const logger = pino({ level: 'silent' });
const fail = vi.fn(() => Promise.reject(new Error('no answer')));
let port: number;
let server: HttpServer;

beforeAll(async () => {
  port = await ports.allocate();
  const routes = [
    {
      path: '/well' as const,
      description: 'is well',
      answer: () => Promise.resolve(text(200, 'ok')),
    },
    { path: '/fails' as const, description: 'fails', answer: fail },
  ];
  server = new HttpServer({ address: { host: '127.0.0.1', port }, routes, logger });
  await server.start();
});
afterAll(async () => {
  await server.stop();
  await ports.releaseAll();
});

describe('the HTTP server', () => {
  it('answers GET, and HEAD without a body', async () => {
    expect(await ask(port, '/well?a=b')).toMatchObject({ status: 200, body: 'ok\n' });
    const head = await ask(port, '/well', { method: 'HEAD' });
    expect(head).toMatchObject({ status: 200, body: '' });
    expect(head.headers['content-length']).toBe('3');
  });

  it('says by OPTIONS what it takes, and refuses all else', async () => {
    const options = await ask(port, '/well', { method: 'OPTIONS' });
    expect(options.headers['allow']).toBe('GET, HEAD, OPTIONS');
    for (const method of ['POST', 'PUT', 'DELETE', 'PATCH', 'TRACE']) {
      const refused = await ask(port, '/well', { method });
      expect(refused.status).toBe(405);
      expect(refused.headers['allow']).toBe('GET, HEAD, OPTIONS');
    }
  });

  it('lists its routes where there is none', async () => {
    const { status, body } = await ask(port, '/other');
    expect(status).toBe(404);
    expect(body).toMatch(/\/well +is well\n/);
  });

  it('answers 500 with a sentence when a route fails', async () => {
    const { status, body } = await ask(port, '/fails');
    expect(status).toBe(500);
    expect(body).toBe('/fails could not be answered: no answer; see the log\n');
  });

  it('refuses a Host header that is not of this host', async () => {
    const refused = await ask(port, '/well', { headers: { host: 'evil.example' } });
    expect(refused.status).toBe(421);
    const asked = await ask(port, '/well', { headers: { host: `localhost:${port}` } });
    expect(asked.status).toBe(200);
  });

  it('refuses headers without bound, and closes a connection that sent a body', async () => {
    const long = await sendRaw(port, `GET /well HTTP/1.1\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`);
    expect(long).toMatch(/^HTTP\/1\.1 431 /);
    const body = await sendRaw(
      port,
      'POST /well HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\nx',
    );
    expect(body).toMatch(/^HTTP\/1\.1 405 /);
  });

  it('closes the connection of a client that does not send its request to the end', async () => {
    const answer = await sendRaw(port, 'GET /well HTTP/1.1\r\nHost: loc');
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
  }, 30_000);

  it('says who is to do what when its port is in use', async () => {
    const other = new HttpServer({ address: { host: '127.0.0.1', port }, routes: [], logger });
    await expect(other.start()).rejects.toThrow(
      `MPP_HTTP: cannot listen at 127.0.0.1:${port}: another program listens there; give another port`,
    );
    await other.stop();
  });

  it('can be stopped before it was started, and twice', async () => {
    const other = new HttpServer({ address: { host: '127.0.0.1', port }, routes: [], logger });
    await other.stop();
    await other.stop();
  });
});

it.each([
  ['localhost', true],
  ['LOCALHOST:80', true],
  ['127.0.0.1:9187', true],
  ['127.3.2.1', true],
  ['[::1]:9187', true],
  ['evil.example', false],
  ['127.0.0.1.evil.example', false],
  ['localhost.evil.example:80', false],
  ['localhost:80@evil', false],
  ['[::1', false],
  ['', false],
  [undefined, false],
])('a Host header %s of this host: %s', (header, expected) => {
  expect(isLoopbackName(header)).toBe(expected);
});

it('knows what only its own host reaches', () => {
  expect(['127.0.0.1', '::1', 'localhost'].every(isLoopback)).toBe(true);
  expect(['0.0.0.0', '::', '10.0.0.1', '127.example'].some(isLoopback)).toBe(false);
});

describe('a shared reading', () => {
  it('is one for all who ask while it lasts, a failure as well', async () => {
    const read = vi.fn(() => Promise.resolve(1));
    const shared = new SharedReading(read, 60_000);
    expect(await Promise.all([shared.get(), shared.get()])).toEqual([1, 1]);
    expect(await shared.get()).toBe(1);
    expect(read).toHaveBeenCalledTimes(1);
    const failing = vi.fn(() => Promise.reject(new Error('down')));
    const failed = new SharedReading(failing, 60_000);
    await expect(failed.get()).rejects.toThrow('down');
    await expect(failed.get()).rejects.toThrow('down');
    expect(failing).toHaveBeenCalledTimes(1);
  });

  it('is done again once it is too old', async () => {
    const read = vi.fn(() => Promise.resolve(1));
    const shared = new SharedReading(read, 0);
    await shared.get();
    await shared.get();
    expect(read).toHaveBeenCalledTimes(2);
  });
});
