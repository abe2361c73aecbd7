import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { formatAddress, sameAddress, type Address } from '../address.js';
import { formatDuration } from '../config/formats.js';
import type { Settings } from '../config/settings.js';
import { errorText } from '../postgres/session.js';
import { untilAborted } from '../wait.js';
import { CommandError, EXIT } from './exit.js';
import type { Io } from './flags.js';
import {
  type Acknowledgement,
  asCommandError,
  isAccepted,
  isOpen,
  type Report,
  submitTask,
  waitForTask,
} from './submit.js';

/** A command of the operator, which runs while the group is held. */
interface StepCommand {
  readonly step: 'stop' | 'promote' | 'restart';
  readonly line: string;
  /** Whether before_promote is reported first. */
  readonly isAnnounced: boolean;
}

export interface Plan {
  readonly groupid: number;
  /** The present primary, as pg_dist_node has it. */
  readonly from: Address;
  /** The same for a restart. */
  readonly to: Address;
  readonly commands: readonly StepCommand[];
  readonly timeoutMs: number;
  readonly cooldownMs: number | null;
  readonly pause: string | null;
}

export interface Step {
  readonly step: string;
  readonly ms: number;
}

interface SwitchoverOptions {
  readonly io: Io;
  readonly settings: Settings;
  readonly plan: Plan;
  readonly say: (line: string) => void;
}

/** How long the end of a hold that was given up is waited for. */
const PUT_BACK_MS = 5_000;
/** How long the row may take to move after the promotion, before the command says that it is not complete. */
const COMMIT_MS = 30_000;

/** One switchover, or restart: the steps in their order, and what follows when one fails. */
export class Switchover {
  readonly steps: Step[] = [];
  readonly #options: SwitchoverOptions;
  readonly #interrupt = new AbortController();
  #child: { readonly kill: (signal: NodeJS.Signals) => void } | undefined;

  constructor(options: SwitchoverOptions) {
    this.#options = options;
  }

  get #isInterrupted(): boolean {
    return this.#interrupt.signal.aborted;
  }

  /** @throws CommandError that says how things stand. */
  async run(): Promise<void> {
    const onSignal = (signal: NodeJS.Signals): void => {
      // A command that goes on after Ctrl-C is ended by the second one.
      if (this.#isInterrupted) this.#child?.kill('SIGKILL');
      this.#interrupt.abort();
      // On a terminal Ctrl-C reaches the command by itself.
      if (signal === 'SIGTERM') this.#child?.kill(signal);
    };
    process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
    try {
      await this.#runSteps();
    } finally {
      process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
    }
  }

  async #runSteps(): Promise<void> {
    const { plan, say } = this.#options;
    const { from, to, commands } = plan;
    await this.#step('hold', () => this.#hold());
    for (const command of commands) {
      const failure = await this.#step(command.step, () => this.#execute(command));
      if (failure !== undefined) await this.#giveUp(command, failure);
    }
    await this.#step('commit', () => this.#commit());
    const total = this.steps.reduce((sum, { ms }) => sum + ms, 0);
    const what = sameAddress(from, to) ? 'is back' : `is ${formatAddress(to)} now`;
    say(`done in ${seconds(total)}: the primary of group ${plan.groupid} ${what}`);
  }

  async #step<T>(step: string, work: () => Promise<T>): Promise<T> {
    const began = performance.now();
    const timer = setInterval(() => {
      this.#options.say(`  ${step.padEnd(8)} ${seconds(performance.now() - began)} so far`);
    }, PROGRESS_MS);
    try {
      return await work();
    } finally {
      clearInterval(timer);
      const ms = Math.round(performance.now() - began);
      this.steps.push({ step, ms });
      this.#options.say(`  ${step.padEnd(8)} ${seconds(ms)}${ms >= PROGRESS_MS ? ' in all' : ''}`);
    }
  }

  /** @throws CommandError; nothing has been changed then. */
  async #hold(): Promise<void> {
    const { io, plan } = this.#options;
    const answer = await this.#ask(plan.from, 'before_demote', plan.timeoutMs);
    if (answer?.status === 'holding') {
      // Such as a table that only writes wait for.
      if (answer.reason !== null) io.complain(`hold: ${answer.reason}`);
      return;
    }
    await this.#putBack();
    if (answer === undefined) throw unchanged('interrupted');
    const { status, reason } = answer;
    if (status === 'pending') {
      throw unchanged(
        `no controller took the report within ${formatDuration(plan.timeoutMs)}; see mpp-controller status`,
      );
    }
    throw unchanged(`the group could not be held: ${reason ?? `the task is ${status}`}`);
  }

  /** @returns why the command failed, undefined when it did not. */
  async #execute(command: StepCommand): Promise<string | undefined> {
    if (command.isAnnounced) await this.#announce();
    // Once the old primary is stopped, the way forward is the shortest to a group that works.
    else if (this.#isInterrupted) return 'interrupted before it was started';
    const { io, plan } = this.#options;
    const { groupid, from, to } = plan;
    const child = spawn('/bin/sh', ['-c', command.line], {
      env: {
        ...io.env,
        MPP_GROUP: String(groupid),
        MPP_FROM_HOST: from.host,
        MPP_FROM_PORT: String(from.port),
        MPP_TO_HOST: to.host,
        MPP_TO_PORT: String(to.port),
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    for (const output of [child.stdout, child.stderr]) {
      createInterface({ input: output }).on('line', (line) =>
        io.complain(`${command.step}: ${line}`),
      );
    }
    try {
      const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
      if (code === 0) return undefined;
      return signal === null ? `it ended with exit code ${code ?? 0}` : `it was ended by ${signal}`;
    } catch (error) {
      return errorText(error);
    } finally {
      this.#child = undefined;
    }
  }

  /** Renews the deadline, and opens a new hold where the first is over. What fails here must not stop a promotion. */
  async #announce(): Promise<void> {
    const { io, plan } = this.#options;
    try {
      const answer = await this.#ask(plan.to, 'before_promote', ANNOUNCE_MS);
      if (answer === undefined || isAccepted(answer)) return;
      io.complain(`the traffic may not wait any more: ${answer.reason ?? answer.status}`);
    } catch (error) {
      io.complain(`before_promote could not be reported: ${errorText(error)}`);
    }
  }

  /** @throws CommandError when the row has not moved in time. */
  async #commit(): Promise<void> {
    const { plan } = this.#options;
    const node = formatAddress(plan.to);
    const next = `report it again when ${node} is the primary: ${notifyLine(plan)}`;
    const answer = await this.#ask(plan.to, 'after_promote', COMMIT_MS, true).catch(
      (error: unknown) => {
        throw incomplete(`${errorText(error)}. ${next}`);
      },
    );
    if (answer?.status === 'done') return;
    const why = answer?.reason ?? answer?.status ?? 'interrupted';
    if (answer !== undefined && isOpen(answer)) {
      throw incomplete(`the controller goes on trying: ${why}; see mpp-controller status`);
    }
    throw incomplete(`pg_dist_node was not changed: ${why}. ${next}`);
  }

  /** A command has failed. @throws CommandError that says how things stand. */
  async #giveUp({ step }: StepCommand, failure: string): Promise<never> {
    const { plan } = this.#options;
    const why = `${step}: ${failure}`;
    const ended = await this.#putBack();
    if (ended?.status === 'done') throw unchanged(why);
    const old = formatAddress(plan.from);
    const forward = sameAddress(plan.from, plan.to)
      ? ''
      : `; or promote ${formatAddress(plan.to)}, and then: ${notifyLine(plan)}`;
    throw incomplete(
      `${why}. ${old} does not take writes, and its group's traffic waits until the deadline of the hold. ` +
        `Start ${old}: the hold then ends by itself${forward}`,
    );
  }

  /**
   * Reports that the old primary is the primary: that ends the hold, or the wait for it, without a change. While
   * it does not answer, the report waits for it.
   */
  async #putBack(): Promise<Acknowledgement | undefined> {
    const { io, plan } = this.#options;
    try {
      return await this.#ask(plan.from, 'after_promote', PUT_BACK_MS, true);
    } catch (error) {
      io.complain(`the hold could not be ended, and ends at its deadline: ${errorText(error)}`);
      return undefined;
    }
  }

  /**
   * Reports, and waits for the answer.
   *
   * @param isLast not ended by Ctrl-C
   * @returns undefined when it was interrupted
   */
  async #ask(
    node: Address,
    event: Report['event'],
    waitMs: number,
    isLast = false,
  ): Promise<Acknowledgement | undefined> {
    const { settings, plan } = this.#options;
    const report: Report = {
      event,
      groupid: plan.groupid,
      nodename: node.host,
      nodeport: node.port,
      secondaries: null,
      timeoutMs: plan.timeoutMs,
      cooldownMs: plan.cooldownMs,
      pause: plan.pause,
    };
    try {
      // What is reported next must come after it.
      const id = await submitTask(settings, report, REPORT_MS);
      const answered = waitForTask(settings, id, waitMs);
      return await (isLast ? answered : untilAborted(this.#interrupt.signal, answered));
    } catch (error) {
      throw asCommandError(error);
    }
  }
}

const REPORT_MS = 10_000;
const ANNOUNCE_MS = 5_000;
const PROGRESS_MS = 2_000;

function notifyLine({ groupid, to }: Plan): string {
  return `mpp-controller notify after_promote --group ${groupid} --host ${to.host} --port ${to.port} --wait`;
}

function unchanged(why: string): CommandError {
  return new CommandError(EXIT.refused, `nothing was changed: ${why}`);
}

function incomplete(why: string): CommandError {
  return new CommandError(EXIT.incomplete, `not complete: ${why}`);
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(2)} s`;
}
