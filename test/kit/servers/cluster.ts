import { setSystemIdentifier } from './identity.js';
import type { Server, StopMode } from './server.js';
import type { Settings } from './settings.js';
import { cloneFrom, follow, waitUntilStreaming } from './standby.js';
import { TestBed, type TestBedOptions } from './test-bed.js';

export interface ClusterOptions extends TestBedOptions {
  /** Worker groups; they get the groupids 1, 2, … */
  groups?: number;
  /** Whether each worker group has a standby. */
  standbys?: boolean;
  /** Whether the coordinator, group 0, has one. */
  coordinatorStandby?: boolean;
  /** Settings of every server, over those for tests. */
  settings?: Settings;
}

/** A group of the cluster: the server that takes writes, and perhaps one that follows it. */
export class Group {
  readonly groupid: number;
  #primary: Server;
  #standby: Server | undefined;

  constructor(groupid: number, primary: Server, standby: Server | undefined) {
    this.groupid = groupid;
    this.#primary = primary;
    this.#standby = standby;
  }

  get primary(): Server {
    return this.#primary;
  }

  /** @throws Error when the group was started without one. */
  get standby(): Server {
    if (this.#standby !== undefined) return this.#standby;
    throw new Error(`group ${this.groupid} has no standby; start the cluster with one`);
  }

  get hasStandby(): boolean {
    return this.#standby !== undefined;
  }

  /** Promotes the standby and swaps the two; the old primary, by now stopped, is the standby. */
  async promoteStandby(): Promise<void> {
    const promoted = this.standby;
    await promoted.promote();
    this.#standby = this.#primary;
    this.#primary = promoted;
  }

  /** Stops the primary cleanly, which first sends all its WAL, and promotes the standby. */
  async switchover(mode: StopMode = 'fast'): Promise<void> {
    await this.primary.stop(mode);
    await this.promoteStandby();
  }

  /** Crashes the primary and promotes the standby. */
  async failover(): Promise<void> {
    await this.primary.kill();
    await this.promoteStandby();
  }

  /** Brings the stopped old primary back as a standby of the new one, on its old port. */
  async rejoin(): Promise<void> {
    await this.standby.stop();
    await cloneFrom(this.primary, this.standby);
  }
}

/** A coordinator and worker groups of real servers. */
export class Cluster {
  /** Group 0 first. */
  readonly groups: readonly Group[];
  readonly testBed: TestBed;

  constructor(testBed: TestBed, groups: readonly Group[]) {
    this.testBed = testBed;
    this.groups = groups;
  }

  /** The primary of group 0. */
  get coordinator(): Server {
    return this.group(0).primary;
  }

  get workers(): readonly Group[] {
    return this.groups.filter((group) => group.groupid > 0);
  }

  /** True when the servers have Citus; else a test installs the stand-in. */
  get hasCitus(): boolean {
    return this.testBed.binaries.hasCitus;
  }

  /** @throws Error when there is no such group. */
  group(groupid: number): Group {
    const group = this.groups[groupid];
    if (group === undefined) throw new Error(`there is no group ${groupid} in this cluster`);
    return group;
  }

  /** Stops and removes all servers. Idempotent. */
  async stop(): Promise<void> {
    await this.testBed.close();
  }
}

/**
 * Starts a coordinator and worker groups (by default two of a primary and a standby), all at once
 * from one template. With Citus the extension is there; no node is registered.
 */
export async function startCluster(options: ClusterOptions = {}): Promise<Cluster> {
  const { groups = 2, standbys = true, coordinatorStandby = false, settings = {} } = options;
  const testBed = await TestBed.open(options);
  try {
    const groupids = Array.from({ length: groups + 1 }, (_, groupid) => groupid);
    const started = await Promise.all(
      groupids.map((groupid) =>
        startGroup(testBed, groupid, groupid === 0 ? coordinatorStandby : standbys, settings),
      ),
    );
    return new Cluster(testBed, started);
  } catch (error) {
    await testBed.close();
    throw error;
  }
}

/** Both are copies of the template, which is a valid backup of the primary until it writes. */
async function startGroup(
  testBed: TestBed,
  groupid: number,
  withStandby: boolean,
  settings: Settings,
): Promise<Group> {
  const name = groupid === 0 ? 'coordinator' : `worker${groupid}`;
  if (!withStandby) {
    const primary = await testBed.createServer(name, settings);
    await setSystemIdentifier(primary.data);
    await startPrimary(primary);
    return new Group(groupid, primary, undefined);
  }
  const [primary, standby] = await Promise.all([
    testBed.createServer(name, settings),
    testBed.createServer(`${name}-standby`, settings),
  ]);
  // A group is a cluster of its own; its standby is of the same one.
  await setSystemIdentifier(standby.data, await setSystemIdentifier(primary.data));
  await follow(primary, standby);
  await Promise.all([startPrimary(primary), standby.start()]);
  await waitUntilStreaming(primary, standby);
  return new Group(groupid, primary, standby);
}

async function startPrimary(primary: Server): Promise<void> {
  await primary.start();
  if (!primary.binaries.hasCitus) return;
  // The template's id came with the copy, and Citus takes a node with its own id for itself.
  await primary.withSession((session) => session.query(NEW_SERVER_ID));
}

const NEW_SERVER_ID = `
  UPDATE pg_catalog.pg_dist_node_metadata
     SET metadata = jsonb_set(metadata, '{server_id}', to_jsonb(gen_random_uuid()::text))`;
