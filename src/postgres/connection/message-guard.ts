import type { Duplex } from 'node:stream';

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
