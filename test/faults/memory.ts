import { readFile } from 'node:fs/promises';

/** A controller has 60 to 125 MB, whatever it has done. */
const MOST_MB = 300;
/** What is loaded and cached once is there after so many schedules; a leak goes on. */
const WARM_SCHEDULES = 10;
const MOST_GROWTH_MB = 60;

interface Known {
  schedules: number;
  warmMb: number;
}

/** The memory of controllers from one schedule to the next. */
export class Memory {
  readonly #known = new Map<number, Known>();
  #mostMb = 0;
  #growthMb = 0;
  #oldest = 0;

  /** @returns a sentence where a controller has more memory than it needs, or goes on taking more. */
  async judge(role: string, pid: number): Promise<string[]> {
    const mb = await readMegabytes(pid);
    if (mb === undefined) return [];
    const known = this.#known.get(pid) ?? { schedules: 0, warmMb: mb };
    this.#known.set(pid, known);
    known.schedules += 1;
    if (known.schedules <= WARM_SCHEDULES) known.warmMb = Math.max(known.warmMb, mb);
    const growth = mb - known.warmMb;
    this.#mostMb = Math.max(this.#mostMb, mb);
    this.#growthMb = Math.max(this.#growthMb, growth);
    this.#oldest = Math.max(this.#oldest, known.schedules);
    if (mb > MOST_MB) return [`the controller of ${role} has ${mb} MB of memory`];
    return growth > MOST_GROWTH_MB
      ? [
          `the controller of ${role} has ${mb} MB of memory after ${known.schedules} schedules, and had ` +
            `${known.warmMb} MB after ${WARM_SCHEDULES}`,
        ]
      : [];
  }

  toString(): string {
    return (
      `controllers with ${this.#mostMb} MB at most, ${this.#growthMb} MB more than in their first ` +
      `${WARM_SCHEDULES} schedules of up to ${this.#oldest}`
    );
  }
}

async function readMegabytes(pid: number): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  const kilobytes = /VmRSS:\s+(\d+)/.exec(status)?.[1];
  return kilobytes === undefined ? undefined : Math.round(Number(kilobytes) / 1_024);
}
