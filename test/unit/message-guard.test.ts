import { Duplex } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { guardMessages, MessageScanner } from '../../src/postgres/connection/stream.js';

function message(type: string, body: string | Buffer, length?: number): Buffer {
  const bytes = Buffer.from(body);
  const header = Buffer.alloc(5);
  header.write(type);
  header.writeInt32BE(length ?? bytes.length + 4, 1);
  return Buffer.concat([header, bytes]);
}

const ERROR = message('E', 'SFATAL\0Mno\0\0');
const READY = message('Z', 'I');

describe('a scanner of messages', () => {
  it.each([
    ['an error', ERROR],
    ['an error without fields', message('E', '\0')],
    [
      'several messages',
      Buffer.concat([message('R', '\0\0\0\0'), ERROR, READY, message('N', 'SLOG\0\0')]),
    ],
  ])('lets pass %s, in one piece and byte by byte', (_, bytes) => {
    expect(() => new MessageScanner().scan(bytes)).not.toThrow();
    const scanner = new MessageScanner();
    for (const byte of bytes) expect(() => scanner.scan(Buffer.from([byte]))).not.toThrow();
  });

  it.each([
    ['an error without the zero of its text', message('E', 'SFATAL')],
    ['an error without its last zero', message('E', 'SFATAL\0')],
    ['a notice without an end', message('N', 'SFATAL')],
    ['an empty error', message('E', '')],
    ['bytes after the end of an error', message('E', 'SFATAL\0\0x\0')],
    ['a length below its own four bytes', message('T', '', 3)],
    ['a negative length', message('D', '', -1)],
    ['an error that is too long', message('E', '', 200_000)],
  ])('refuses %s', (_, bytes) => {
    expect(() => new MessageScanner().scan(bytes)).toThrow(/the server sent/);
    const scanner = new MessageScanner();
    expect(() => {
      for (const byte of bytes) scanner.scan(Buffer.from([byte]));
    }).toThrow(/the server sent/);
  });

  it('refuses rows without end, and forgets what came before the server was ready', () => {
    const row = message('D', Buffer.alloc(10_000_000));
    const scanner = new MessageScanner();
    for (let round = 0; round < 30; round += 1) scanner.scan(Buffer.concat([row, READY]));
    expect(() => {
      for (let round = 0; round < 11; round += 1) scanner.scan(row);
    }).toThrow('without end');
  });
});

describe('a guarded stream', () => {
  const stream = (): Duplex =>
    guardMessages(new Duplex({ read: () => undefined, write: (_c, _e, done) => done() }));

  it('ends with an error when its reader throws', async () => {
    const guarded = stream();
    guarded.on('data', () => {
      throw new Error('Unknown authenticationOk message type 7');
    });
    const failed = new Promise<Error>((resolve) => guarded.once('error', resolve));
    guarded.push(message('R', '\0\0\0\x07'));
    expect((await failed).message).toContain('Unknown authenticationOk message type 7');
    expect(guarded.destroyed).toBe(true);
  });

  it('ends before its reader sees what would keep it for ever', async () => {
    const guarded = stream();
    const seen: Buffer[] = [];
    guarded.on('data', (chunk: Buffer) => seen.push(chunk));
    const failed = new Promise<Error>((resolve) => guarded.once('error', resolve));
    guarded.push(message('E', 'FATAL'));
    expect((await failed).name).toBe('ProtocolError');
    expect(seen).toEqual([]);
  });
});
