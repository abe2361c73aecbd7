import type { Harness } from '../harness.js';
import { keysOfGroup } from '../standin/schema.js';
import { expectSettled, snapshotOf } from './settled.js';

interface Address {
  readonly host: string;
  readonly port: number;
}

/** A worker group as it is before a test, and where the test moves it. */
export interface Subject {
  readonly groupid: number;
  /** Of `items` and `notes`: a row of it is on this group. */
  readonly key: number;
  /** The present primary, as pg_dist_node has it. */
  readonly node: Address;
  /** The other name of the same server, so that a row can move while its server stays. */
  readonly next: Address;
  /** See `expectSettled`. */
  settled(): Promise<void>;
}

export async function subjectOf(h: Harness, groupid: number): Promise<Subject> {
  const since = await snapshotOf(h, groupid);
  const [key = 0] = await keysOfGroup(h.db, groupid, 1);
  const node = await primaryAddress(h, groupid);
  const next = { ...node, host: node.host === 'localhost' ? '127.0.0.1' : 'localhost' };
  return { groupid, key, node, next, settled: () => expectSettled(h, since, key) };
}

export async function primaryAddress(h: Harness, groupid: number): Promise<Address> {
  const { rows } = await h.db.query<Address>(PRIMARY, [groupid]);
  if (rows[0] === undefined) throw new Error(`group ${groupid} has no primary`);
  return rows[0];
}

const PRIMARY = `
  SELECT nodename AS host, nodeport AS port
  FROM pg_dist_node
  WHERE groupid = $1 AND noderole = 'primary'`;
