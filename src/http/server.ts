import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { isIP } from 'node:net';
import { type Address, formatAddress } from '../address.js';
import { ConfigError } from '../errors.js';
import type { Logger } from '../logger.js';
import { errorText } from '../postgres/session.js';
import { within } from '../wait.js';

/** What a route answers. */
export interface Answer {
  readonly status: number;
  readonly type: string;
  readonly body: string;
}

/** One path, and what is answered there. Its query string is left out. */
export interface Route {
  readonly path: `/${string}`;
  /** For the list of routes. */
  readonly description: string;
  answer(): Promise<Answer>;
}

interface HttpServerOptions {
  readonly address: Address;
  readonly routes: readonly Route[];
  readonly logger: Logger;
}

const ALLOW = 'GET, HEAD, OPTIONS';
/** Of the request's headers; a monitoring system sends some hundred bytes. */
const HEADER_BYTES = 8_192;
/** A client that sends its request more slowly is answered with 408. */
const REQUEST_MS = 5_000;
/** How long a connection may do nothing: a client that does not read its answer, for one. */
const IDLE_MS = 10_000;
/** More are closed as they come, so that a scan of ports takes no memory from the controller. */
const CONNECTIONS = 64;
/** How long an answer that is under way delays a stop. */
const STOP_MS = 500;

/** No file of another host, nothing inline, no frame around it. */
const POLICY =
  "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const TEXT = 'text/plain; charset=utf-8';

export function text(status: number, body: string): Answer {
  return { status, type: TEXT, body: `${body}\n` };
}

/** Serves a list of routes, for reading only. */
export class HttpServer {
  readonly #options: HttpServerOptions;
  readonly #server: Server;
  #starting: Promise<void> | undefined;
  #stopping: Promise<void> | undefined;

  constructor(options: HttpServerOptions) {
    this.#options = options;
    this.#server = createServer(
      {
        maxHeaderSize: HEADER_BYTES,
        requestTimeout: REQUEST_MS,
        headersTimeout: REQUEST_MS,
        keepAliveTimeout: IDLE_MS,
        connectionsCheckingInterval: 1_000,
      },
      (request, response) => void this.#answer(request, response),
    );
    this.#server.maxConnections = CONNECTIONS;
    this.#server.setTimeout(IDLE_MS);
  }

  /** @throws ConfigError when it cannot listen at its address. */
  start(): Promise<void> {
    this.#starting ??= this.#start();
    return this.#starting;
  }

  /** Resolves when no connection is left. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #start(): Promise<void> {
    const { address, logger } = this.#options;
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.once('error', reject);
        this.#server.listen({ ...address, exclusive: true }, () => {
          this.#server.off('error', reject);
          resolve();
        });
      });
    } catch (error) {
      throw new ConfigError(describeFailure(address, error), error);
    }
    this.#server.on('error', (error) => logger.warn({ err: error }, 'the HTTP server has failed'));
    const where = formatAddress(address);
    logger.info(`metrics and health are served at http://${where}/metrics`);
    if (!isLoopback(address.host)) {
      logger.warn(
        `MPP_HTTP is ${where}, which other hosts may reach: metrics and status are shown without a login`,
      );
    }
  }

  async #stop(): Promise<void> {
    await this.#starting?.catch(() => undefined);
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    await within(STOP_MS, closed, undefined);
    this.#server.closeAllConnections();
    await within(STOP_MS, closed, undefined);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // A body means nothing here, and is not read; the connection cannot be used for another request then.
    const hasBody =
      request.headers['transfer-encoding'] !== undefined ||
      !['0', undefined].includes(request.headers['content-length']);
    if (hasBody || this.#stopping !== undefined) response.setHeader('Connection', 'close');
    const { status, type, body } = await this.#decide(request, response);
    response.writeHead(status, {
      'Content-Type': type,
      'Content-Length': Buffer.byteLength(body),
      'Cache-Control': 'no-store',
      'X-Content-Type-Options': 'nosniff',
      'Referrer-Policy': 'no-referrer',
      'Content-Security-Policy': POLICY,
    });
    response.end(request.method === 'HEAD' ? undefined : body);
  }

  async #decide(request: IncomingMessage, response: ServerResponse): Promise<Answer> {
    const { address, routes, logger } = this.#options;
    const { method = '', url = '', headers } = request;
    if (isLoopback(address.host) && !isLoopbackName(headers.host)) {
      return text(421, 'ask for localhost, 127.0.0.1 or [::1]: this server is for its own host');
    }
    if (!ALLOW.split(', ').includes(method)) {
      response.setHeader('Allow', ALLOW);
      return text(405, `only ${ALLOW} are answered; nothing can be changed here`);
    }
    const path = url.split('?', 1)[0];
    const route = routes.find((one) => one.path === path);
    if (route === undefined) return text(404, listRoutes(routes));
    if (method === 'OPTIONS') {
      response.setHeader('Allow', ALLOW);
      return text(200, ALLOW);
    }
    try {
      return await route.answer();
    } catch (error) {
      logger.error({ err: error, path: route.path }, 'an HTTP request could not be answered');
      return text(500, `${route.path} could not be answered: ${errorText(error)}; see the log`);
    }
  }
}

function listRoutes(routes: readonly Route[]): string {
  const lines = routes.map(({ path, description }) => `  ${path.padEnd(14)}${description}`);
  return ['there is nothing at this path; ask for one of', ...lines].join('\n');
}

/** Whether only programs of this host reach the address. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

/**
 * Whether a Host header names this host. A web page that another host serves can have its own name resolve to
 * 127.0.0.1 and then read what this server answers; its requests have that name in their Host header.
 */
export function isLoopbackName(header: string | undefined): boolean {
  const name = /^(\[[0-9a-f:.]+\]|[^:]*)(?::\d{1,5})?$/i.exec(header ?? '')?.[1];
  return name !== undefined && isLoopback(name.replace(/^\[(.*)\]$/, '$1').toLowerCase());
}

function describeFailure(address: Address, error: unknown): string {
  const where = `MPP_HTTP: cannot listen at ${formatAddress(address)}`;
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  switch (code) {
    case 'EADDRINUSE':
      return `${where}: another program listens there; give another port, or stop that program`;
    case 'EACCES':
      return `${where}: this user may not use that port; give one of 1024 or more`;
    case 'EADDRNOTAVAIL':
      return `${where}: this host does not have that address; give one that it has`;
    default:
      return `${where}: ${errorText(error)}; give another address`;
  }
}
