import { Duplex } from 'node:stream';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { ConfigError } from '../../errors.js';
import type { TlsPolicy } from './tls.js';

interface ServerStreamOptions {
  readonly tls: TlsPolicy;
  /** The address to connect to, if the host is not to be resolved. */
  readonly hostaddr: string | undefined;
}

type Encryption = 'tls' | 'plain';

/**
 * The stream of one session for node-postgres, which knows neither `allow` nor `prefer`: encrypted or not
 * as libpq would do it. node-postgres sees a socket that is connected once that is settled, and takes it
 * for a plain one.
 *
 * With `allow` and `prefer` a server that refuses the one kind of session is asked for the other, in a
 * second connection. It refuses by not speaking TLS, by failing in it, or by its pg_hba.conf.
 */
export class ServerStream extends Duplex {
  readonly #options: ServerStreamOptions;
  #socket: Socket | undefined;
  #place: { readonly port: number; readonly host: string } | { readonly path: string } | undefined;
  #encryption: Encryption;
  /** What there is still to try. */
  #other: Encryption | undefined;
  /** The first packet of the session, for the second connection; undefined once the server accepts it. */
  #startup: Buffer | undefined;
  #isAnswered = false;
  /** What the server said to the session with TLS that it refused. */
  #refusal: Buffer | undefined;
  #keepAlive: readonly [boolean, number] | undefined;
  #isUnref = false;

  constructor(options: ServerStreamOptions) {
    super({ allowHalfOpen: false });
    this.#options = options;
    const { mode } = options.tls;
    this.#encryption = mode === 'disable' || mode === 'allow' ? 'plain' : 'tls';
    if (mode === 'allow') this.#other = 'tls';
    if (mode === 'prefer') this.#other = 'plain';
  }

  /** As net.Socket: to a port of a host, or to a Unix socket, which has no TLS. */
  connect(portOrPath: number | string, host = 'localhost'): this {
    if (typeof portOrPath === 'string') {
      this.#place = { path: portOrPath };
      this.#encryption = 'plain';
      this.#other = undefined;
    } else {
      this.#place = { port: portOrPath, host };
    }
    this.#attempt().then(
      (isOpen) => isOpen && this.emit('connect'),
      (error: unknown) => this.#fail(error),
    );
    return this;
  }

  setNoDelay(): this {
    return this;
  }

  setKeepAlive(enable = false, initialDelayMs = 0): this {
    this.#keepAlive = [enable, initialDelayMs];
    this.#socket?.setKeepAlive(enable, initialDelayMs);
    return this;
  }

  ref(): this {
    this.#isUnref = false;
    this.#socket?.ref();
    return this;
  }

  unref(): this {
    this.#isUnref = true;
    this.#socket?.unref();
    return this;
  }

  override _read(): void {
    this.#socket?.resume();
  }

  override _write(
    chunk: Buffer,
    _encoding: BufferEncoding,
    callback: (error?: Error | null) => void,
  ): void {
    if (!this.#isAnswered && this.#other !== undefined) {
      this.#startup = this.#startup ? Buffer.concat([this.#startup, chunk]) : chunk;
    }
    const socket = this.#socket;
    if (socket === undefined) callback(new Error('the session is not connected'));
    else if (socket.write(chunk)) callback();
    else socket.once('drain', () => callback());
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#socket?.end();
    callback();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#socket?.destroy();
    callback(error);
  }

  /** Connects, encrypted if it is to be, until a session may begin. @returns false when destroyed */
  async #attempt(): Promise<boolean> {
    for (;;) {
      try {
        await this.#open();
        return !this.destroyed;
      } catch (error) {
        this.#socket?.destroy();
        // A host that cannot be reached at all is no better without TLS.
        if (!(error instanceof TlsError) || !this.#takeOther()) throw error;
      }
    }
  }

  #takeOther(): boolean {
    if (this.#other === undefined || this.destroyed) return false;
    this.#encryption = this.#other;
    this.#other = undefined;
    return true;
  }

  async #open(): Promise<void> {
    if (this.#place === undefined) throw new Error('a stream without a server');
    const { hostaddr, tls } = this.#options;
    const place = this.#place;
    const raw = connect(
      'path' in place ? place : { port: place.port, host: hostaddr ?? place.host },
    );
    this.#hold(raw);
    await once(raw, 'connect');
    raw.setNoDelay(true);
    if (this.#keepAlive) raw.setKeepAlive(...this.#keepAlive);
    if (this.#encryption === 'plain' || 'path' in place) {
      this.#adopt(raw);
      return;
    }
    if (!tls.isDirect && !(await askForTls(raw))) {
      if (tls.mayBePlain) {
        this.#other = undefined;
        this.#adopt(raw);
        return;
      }
      throw new Error(
        `the server at ${place.host}:${place.port} does not take TLS (ssl = off), ` +
          `which sslmode=${tls.mode} asks for`,
      );
    }
    try {
      const encrypted = connectTls({ ...tls.optionsFor(place.host), socket: raw });
      this.#hold(encrypted);
      await once(encrypted, 'secureConnect');
      this.#adopt(encrypted);
    } catch (error) {
      if (error instanceof ConfigError) throw error;
      throw new TlsError(tls.explain(place.host, error));
    }
  }

  #hold(socket: Socket): void {
    this.#socket = socket;
    if (this.destroyed) socket.destroy();
    // One that is given up may still fail.
    socket.on('error', () => undefined);
    if (this.#isUnref) socket.unref();
  }

  /** From now on it is this socket that the session runs on. */
  #adopt(socket: Socket): void {
    let isOver = false;
    const isMine = (): boolean => this.#socket === socket;
    socket.on('data', (chunk: Buffer) => {
      if (!isMine() || this.#isRefused(chunk)) return;
      if (!this.push(chunk)) socket.pause();
    });
    socket.on('end', () => {
      isOver = true;
      if (isMine()) this.push(null);
    });
    socket.on('error', (error) => isMine() && this.destroy(error));
    socket.on('close', () => isMine() && !isOver && this.destroy());
  }

  /** Looks at the server's first answer, and begins again where it is a refusal. */
  #isRefused(chunk: Buffer): boolean {
    if (this.#isAnswered) return false;
    const startup = this.#startup;
    const isRefusal = sqlStateOf(chunk)?.startsWith('28') === true;
    if (!isRefusal || startup === undefined || !this.#takeOther()) {
      this.#isAnswered = true;
      this.#startup = undefined;
      // It says more than that plain sessions are not let in.
      if (!isRefusal || this.#refusal === undefined) return false;
      this.push(this.#refusal);
      this.push(null);
      return true;
    }
    if (this.#encryption === 'plain') this.#refusal = chunk;
    const refusing = this.#socket;
    this.#socket = undefined;
    refusing?.destroy();
    this.#attempt().then(
      (isOpen) => isOpen && this.#socket?.write(startup),
      (error: unknown) => this.#fail(error, chunk),
    );
    return true;
  }

  /** @param refusal what the server said before, which says more than why there was no second connection */
  #fail(error: unknown, refusal?: Buffer): void {
    if (refusal !== undefined && !this.destroyed) {
      this.#isAnswered = true;
      this.push(refusal);
      this.push(null);
      return;
    }
    const cause = error instanceof TlsError ? error.cause : error;
    this.destroy(cause instanceof Error ? cause : new Error(String(cause)));
  }
}

/** Encryption failed, on a host that can be reached. */
class TlsError extends Error {
  constructor(cause: Error) {
    super(cause.message, { cause });
  }
}

/** Asks in PostgreSQL's protocol. @returns whether the server takes TLS */
async function askForTls(socket: Socket): Promise<boolean> {
  const answer = once(socket, 'data');
  socket.write(SSL_REQUEST);
  const letter = String(await answer);
  // More than one letter would be data from before the encryption, which is not authenticated.
  if (letter === 'S') return true;
  if (letter === 'N') return false;
  throw new Error('the server does not answer like PostgreSQL when it is asked for TLS');
}

/** Resolves to what comes with the event. @throws when the socket fails or closes before */
async function once(
  socket: Socket,
  event: 'connect' | 'secureConnect' | 'data',
): Promise<Buffer | undefined> {
  return new Promise((resolve, reject) => {
    const done = (data?: Buffer): void => {
      socket.off('error', reject).off('close', closed);
      resolve(data);
    };
    const closed = (): void => reject(new Error('the server closed the connection'));
    socket.once(event, done).once('error', reject).once('close', closed);
  });
}

/** Of an ErrorResponse at the beginning of `bytes`; undefined for anything else. */
function sqlStateOf(bytes: Buffer): string | undefined {
  if (bytes[0] !== ERROR_RESPONSE) return undefined;
  const field = bytes
    .subarray(5)
    .toString('latin1')
    .split('\0')
    .find((text) => text.startsWith('C'));
  return field?.slice(1);
}

const ERROR_RESPONSE = 'E'.charCodeAt(0);

/** Its length, and a protocol version that no session has. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);

/** A notice or error is a few kilobytes. */
const MOST_ERROR_BYTES = 100_000;
/** What a server may send before it says that it is ready again. No statement of this program returns so much. */
const MOST_BYTES = 100_000_000;
const HEADER_BYTES = 5;
const [ERROR, NOTICE, READY] = [0x45, 0x4e, 0x5a];

/** What answers does not speak the protocol of PostgreSQL. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
}

/**
 * Follows the messages that a server sends, for what node-postgres must not see: an error without its end
 * keeps its parser in an endless loop, and answers without end fill the memory.
 */
export class MessageScanner {
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerBytes = 0;
  #type = 0;
  /** Of the message that is being read. */
  #left = 0;
  #body: Buffer[] | undefined;
  #sinceReady = 0;

  /** @throws ProtocolError */
  scan(chunk: Buffer): void {
    this.#sinceReady += chunk.length;
    if (this.#sinceReady > MOST_BYTES) throw new ProtocolError('the server sends without end');
    let at = 0;
    while (at < chunk.length) {
      at +=
        this.#headerBytes < HEADER_BYTES ? this.#readHeader(chunk, at) : this.#readBody(chunk, at);
      if (this.#headerBytes === HEADER_BYTES && this.#left === 0) this.#end();
    }
  }

  #readHeader(chunk: Buffer, at: number): number {
    const copied = chunk.copy(
      this.#header,
      this.#headerBytes,
      at,
      at + HEADER_BYTES - this.#headerBytes,
    );
    this.#headerBytes += copied;
    if (this.#headerBytes < HEADER_BYTES) return copied;
    this.#type = this.#header.readUInt8(0);
    const length = this.#header.readInt32BE(1);
    if (length < 4) throw new ProtocolError('the server sent a message of a negative length');
    this.#left = length - 4;
    const isError = this.#type === ERROR || this.#type === NOTICE;
    if (isError && this.#left > MOST_ERROR_BYTES) {
      throw new ProtocolError('the server sent an error message of more than 100 kB');
    }
    this.#body = isError ? [] : undefined;
    return copied;
  }

  #readBody(chunk: Buffer, at: number): number {
    const part = chunk.subarray(at, at + this.#left);
    this.#left -= part.length;
    this.#body?.push(part);
    return part.length;
  }

  #end(): void {
    if (this.#body !== undefined && !isErrorBody(Buffer.concat(this.#body))) {
      throw new ProtocolError('the server sent an error message without an end');
    }
    if (this.#type === READY) this.#sinceReady = 0;
    this.#headerBytes = 0;
    this.#body = undefined;
  }
}

/** Fields of a type and a text that ends with zero, and a zero after the last one. */
function isErrorBody(body: Buffer): boolean {
  let at = 0;
  while (at < body.length && body[at] !== 0) {
    const end = body.indexOf(0, at + 1);
    if (end < 0) return false;
    at = end + 1;
  }
  return at === body.length - 1;
}

/**
 * Has a stream end with an error where what the server sends cannot be read. Otherwise an exception of
 * the parser, which no caller catches, would end the whole process: any address that is reported is connected to.
 */
export function guardMessages<T extends Duplex>(stream: T): T {
  const scanner = new MessageScanner();
  const emit = stream.emit.bind(stream);
  stream.emit = (event: string | symbol, ...args: unknown[]): boolean => {
    if (event !== 'data') return emit(event, ...args);
    try {
      scanner.scan(args[0] as Buffer);
      return emit(event, ...args);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      stream.destroy(
        error instanceof ProtocolError
          ? error
          : new ProtocolError(`the server does not speak PostgreSQL's protocol: ${text}`),
      );
      return true;
    }
  };
  return stream;
}
