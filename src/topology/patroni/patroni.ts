import { errorText } from '../../postgres/session.js';
import { Loop } from '../loop.js';
import { MemberWriter } from '../member-writer.js';
import { removeUnlisted } from '../members.js';
import type { SourceContext, TopologySource } from '../source.js';
import { getJson, type Access } from './client.js';
import { readAnswer, type PatroniCluster } from './cluster.js';
import type { GroupEndpoints } from './endpoints.js';

export interface PatroniOptions extends SourceContext {
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
