import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findPassword, passwordFromFile } from '../../src/postgres/connection/password.js';

const LOGIN = { host: 'h', port: 5432, database: 'd', user: 'u' };

describe('a line of the password file', () => {
  it.each([
    ['h:5432:d:u:pw', 'pw'],
    ['*:*:*:*:pw', 'pw'],
    ['h:*:d:*:pw', 'pw'],
    ['other:5432:d:u:no\nh:5432:d:u:pw', 'pw'],
    ['*:*:*:*:first\nh:5432:d:u:second', 'first'],
    ['# h:5432:d:u:no\n\nh:5432:d:u:pw\r\n', 'pw'],
    ['h:5432:d:u:p:w', 'p:w'],
    [String.raw`h:5432:d:u:p\:w\\`, 'p:w\\'],
    ['h:5432:d:u:*', '*'],
    ['h:5432:d:u:', undefined],
    ['h:5432:d:u', undefined],
    ['h:5433:d:u:pw', undefined],
    ['h:5432:replication:u:pw', undefined],
    [String.raw`\*:5432:d:u:pw`, undefined],
  ])('%j gives %j', (text, password) => {
    expect(findPassword(text, LOGIN)).toBe(password);
  });

  it('has its separators escaped in names, and sockets of the default folder as localhost', () => {
    const line = String.raw`fe80\:\:1:5432:d:u:pw`;
    expect(findPassword(line, { ...LOGIN, host: 'fe80::1' })).toBe('pw');
    const local = { ...LOGIN, host: '/var/run/postgresql' };
    expect(findPassword('localhost:5432:d:u:pw', local)).toBe('pw');
    expect(findPassword('/var/run/postgresql:5432:d:u:pw', local)).toBe('pw');
    expect(findPassword('localhost:5432:d:u:pw', { ...LOGIN, host: '/elsewhere' })).toBe(undefined);
  });
});

describe('without a password', () => {
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'mpp-pgpass-'));
  });

  afterAll(() => rm(folder, { recursive: true }));

  it('says where one may be put, and what is wrong with the file', async () => {
    const file = join(folder, 'pgpass');
    expect(() => passwordFromFile(file, LOGIN)).toThrow(
      /DATABASE_URL, PGPASSWORD or .*pgpass \(.*does not exist\)/,
    );
    await writeFile(file, 'h:5432:d:other:secret\n', { mode: 0o600 });
    expect(() => passwordFromFile(file, LOGIN)).toThrow(/has no line for it/);
    expect(() => passwordFromFile(file, LOGIN)).not.toThrow(/secret/);
    await chmod(file, 0o644);
    expect(() => passwordFromFile(file, LOGIN)).toThrow(
      /is ignored because its mode is 0644; chmod 0600/,
    );
  });
});
