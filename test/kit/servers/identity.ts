import { randomBytes } from 'node:crypto';
import { open, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * Gives the data folder of a stopped server a system identifier of its own, as initdb would, in a
 * millisecond: copies of one template are one cluster for PostgreSQL otherwise. The identifier stands in
 * the control file, which has a checksum, and in the first page of each WAL file.
 *
 * @param identifier by default a new one; a standby must get that of its primary.
 * @returns the identifier.
 */
export async function setSystemIdentifier(
  data: string,
  identifier: bigint = newIdentifier(),
): Promise<bigint> {
  const controlFile = join(data, 'global', 'pg_control');
  const control = await readFile(controlFile);
  const checksumAt = findChecksum(control);
  control.writeBigUInt64LE(identifier, 0);
  control.writeUInt32LE(crc32c(control, checksumAt), checksumAt);
  // In place: the owner and the mode of the file stay.
  await writeFile(controlFile, control);
  const wal = join(data, 'pg_wal');
  for (const name of await readdir(wal)) {
    if (/^[0-9A-F]{24}$/.test(name)) await writeToWal(join(wal, name), identifier);
  }
  return identifier;
}

/** Of a long page header: XLogPageHeaderData, then xlp_sysid. */
const WAL_IDENTIFIER_OFFSET = 24;

async function writeToWal(file: string, identifier: bigint): Promise<void> {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(identifier);
  const wal = await open(file, 'r+');
  try {
    await wal.write(bytes, 0, bytes.length, WAL_IDENTIFIER_OFFSET);
  } finally {
    await wal.close();
  }
}

/** Positive, as a bigint of SQL shows it. */
function newIdentifier(): bigint {
  return randomBytes(8).readBigUInt64LE() >> 2n;
}

/** Where the checksum stands differs between releases; it is that of all that precedes it. */
function findChecksum(control: Buffer): number {
  for (let at = 8; at + 4 <= control.length; at += 4) {
    if (control.readUInt32LE(at) === crc32c(control, at)) return at;
  }
  throw new Error('pg_control has no valid checksum');
}

function crc32c(bytes: Buffer, length: number): number {
  let crc = 0xffffffff;
  for (let at = 0; at < length; at += 1) {
    crc = (TABLE[(crc ^ (bytes[at] ?? 0)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});
