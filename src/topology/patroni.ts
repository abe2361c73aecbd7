import { readFileSync } from 'node:fs';
import { request as httpRequest, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { z } from 'zod';
import { ConfigError, UnreachableError } from '../errors.js';
import { linkSignals, Loop } from '../wait.js';
import { errorText } from '../postgres/session.js';
import { isHost, plainHost } from '../address.js';
import type { GroupEndpoints } from '../config/formats.js';
import {
  type MemberReport,
  MemberWriter,
  removeUnlisted,
  type SourceContext,
  type TopologySource,
} from './members.js';

interface PatroniOptions extends SourceContext {
  readonly groups: readonly GroupEndpoints[];
  /** How often each group is asked, and how long one endpoint may take to answer. */
  readonly intervalMs: number;
  readonly access: Access;
}

/** Asks the Patroni of each group who its members are. */
export class Patroni implements TopologySource {
  readonly #writer: MemberWriter;
  readonly #groups: readonly GroupPoll[];

  constructor(options: PatroniOptions) {
    this.#writer = new MemberWriter('patroni', options);
    this.#groups = options.groups.map((group) => new GroupPoll(group, options, this.#writer));
  }

  start(): void {
    for (const group of this.#groups) group.start();
  }

  async stop(): Promise<void> {
    await Promise.all(this.#groups.map((group) => group.stop()));
    await this.#writer.settle();
  }
}

/** One group: any of its members answers for all. */
class GroupPoll {
  readonly #group: GroupEndpoints;
  readonly #options: PatroniOptions;
  readonly #writer: MemberWriter;
  readonly #loop: Loop;
  /** The endpoint that answered last; it is asked first. */
  #preferred: string | undefined;
  #said = '';

  constructor(group: GroupEndpoints, options: PatroniOptions, writer: MemberWriter) {
    this.#group = group;
    this.#options = options;
    this.#writer = writer;
    this.#loop = new Loop({
      intervalMs: options.intervalMs,
      signal: options.signal,
      work: (signal) => this.#poll(signal),
    });
  }

  start(): void {
    this.#loop.start();
  }

  async stop(): Promise<void> {
    await this.#loop.stop();
  }

  async #poll(signal: AbortSignal): Promise<void> {
    const { db, ttlMs, onChange } = this.#options;
    const { groupid } = this.#group;
    try {
      const { reports, complete } = await this.#ask(signal);
      this.#writer.submit(reports);
      if (complete) {
        const listed = reports.map(({ address }) => address);
        if (await removeUnlisted(db, 'patroni', groupid, listed, ttlMs)) onChange();
      }
      this.#say('');
    } catch (error) {
      if (!signal.aborted) this.#say(errorText(error));
    }
  }

  /** @throws Error with the reasons of all, when none has answered. */
  async #ask(signal: AbortSignal): Promise<PatroniCluster> {
    const first = this.#preferred ?? this.#group.urls[0] ?? '';
    try {
      return await this.#askOne(first, signal);
    } catch (error) {
      this.#preferred = undefined;
      const others = this.#group.urls.filter((url) => url !== first);
      if (others.length === 0 || signal.aborted) throw error;
      return await Promise.any(others.map((url) => this.#askOne(url, signal)));
    }
  }

  async #askOne(url: string, signal: AbortSignal): Promise<PatroniCluster> {
    const { access, intervalMs } = this.#options;
    const seenAt = performance.now();
    const answer = await getJson(url, '/cluster', access, intervalMs, signal);
    const cluster = readAnswer(answer, this.#group.groupid, seenAt);
    this.#preferred = url;
    return cluster;
  }

  /** Once for each change, not each round. */
  #say(text: string): void {
    if (text === this.#said) return;
    this.#said = text;
    const { groupid } = this.#group;
    if (text === '') this.#options.logger.info({ groupid }, 'Patroni answers again');
    else this.#options.logger.warn({ groupid }, `Patroni does not answer: ${text}`);
  }
}

/**
 * What `GET /cluster` says, in all of Patroni's versions; what is not read here may change. A tag is
 * anything that YAML can write.
 */
const CLUSTER = z.object({
  members: z.array(
    z.object({
      role: z.string(),
      state: z.string().optional(),
      host: z.string().optional(),
      port: z.number().optional(),
      timeline: z.number().optional(),
      tags: z.record(z.string(), z.unknown()).optional(),
    }),
  ),
});

/** What one answer says of a group. */
export interface PatroniCluster {
  readonly reports: readonly MemberReport[];
  /** False when a member has not published its address yet: who is not listed may be that one. */
  readonly complete: boolean;
}

/**
 * Reads an answer of Patroni; pure.
 *
 * - `leader` is the primary; a `standby_leader` takes no writes, so its group has none.
 * - `noloadbalance`: the node is to serve no reads, which is all that a secondary is for in
 *   pg_dist_node; Patroni registers no such node either.
 * - `nofailover` says nothing of reads. Such a node is a secondary like any other; whether it may be
 *   promoted is for Patroni to decide, and here only the member that has the leader key is the primary.
 *
 * @param seenAt when it was asked, as performance.now() has it.
 * @throws ZodError when it is no answer of Patroni.
 */
export function readAnswer(answer: unknown, groupid: number, seenAt: number): PatroniCluster {
  const { members } = CLUSTER.parse(answer);
  const reports = members.flatMap((member): MemberReport[] => {
    const { port = 5432 } = member;
    const host = plainHost(member.host ?? '');
    // The table refuses any other host, and with it all that is written in one statement.
    if (!isHost(host) || !isPort(port)) return [];
    const { timeline } = member;
    return [
      {
        groupid,
        address: { host, port },
        role: PRIMARY_ROLES.has(member.role) ? 'primary' : 'secondary',
        state: stateOf(member.state),
        timeline: timeline !== undefined && isTimeline(timeline) ? timeline : null,
        noloadbalance: isSet(member.tags?.['noloadbalance']),
        seenAt,
      },
    ];
  });
  return { reports, complete: members.length > 0 && reports.length === members.length };
}

/** `master` and `primary` in answers of versions before 2.0 and of forks. */
const PRIMARY_ROLES = new Set(['leader', 'master', 'primary']);

/** The word of Patroni, if the table takes it. */
function stateOf(state: string | undefined): string {
  const isWord = state !== undefined && /^[a-z][a-z ()_-]{0,62}$/i.test(state);
  // Only what this source has written: what Patroni still lists has not left.
  return isWord && state !== 'removed' ? state : 'unknown';
}

function isSet(tag: unknown): boolean {
  return tag === true || (typeof tag === 'string' && /^(true|yes|on|1)$/i.test(tag));
}

function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65_535;
}

function isTimeline(timeline: number): boolean {
  return Number.isInteger(timeline) && timeline >= 1 && timeline <= 2_147_483_647;
}

/** How Patroni's REST API is reached. */
export interface Access {
  /** PEM of the authority that signs its certificates; without it those that node knows. */
  readonly ca: string | undefined;
  /** `user:password`. */
  readonly auth: string | undefined;
}

/** A cluster of thousands of members is far smaller. */
const MOST_BYTES = 1_000_000;

/**
 * GET of a JSON document.
 *
 * @param url of the endpoint; `path` is added to it.
 * @throws UnreachableError when there is no answer in time, or one other than 200 and JSON.
 */
export async function getJson(
  url: string,
  path: string,
  access: Access,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<unknown> {
  const target = new URL(url);
  target.pathname = `${target.pathname.replace(/\/$/, '')}${path}`;
  const over = linkSignals([signal], timeoutMs);
  try {
    return JSON.parse(await get(target, access, over.signal)) as unknown;
  } catch (error) {
    throw new UnreachableError(`no answer from ${target.href}: ${errorText(error)}`, error);
  } finally {
    over.release();
  }
}

/** fetch would do, but takes no certificate authority. */
async function get(target: URL, { ca, auth }: Access, signal: AbortSignal): Promise<string> {
  const options: RequestOptions & { ca?: string } = {
    signal,
    headers: { accept: 'application/json' },
    ...(auth === undefined ? {} : { auth }),
    ...(ca === undefined ? {} : { ca }),
  };
  const request = target.protocol === 'https:' ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    request(target, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('error', reject);
      response.on('data', (chunk: string) => {
        text += chunk;
        if (text.length > MOST_BYTES) response.destroy(new Error('the answer is too long'));
      });
      response.on('end', () => {
        if (response.statusCode === 200) resolve(text);
        else reject(new Error(`HTTP status ${response.statusCode ?? 'unknown'}`));
      });
    })
      .on('error', reject)
      .end();
  });
}

/** @throws ConfigError when the file cannot be read. */
export function readAuthority(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new ConfigError(`MPP_PATRONI_CA names a file that cannot be read: ${path}`, error);
  }
}
