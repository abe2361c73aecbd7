import { Command } from 'commander';
import { formatAddress, isHost, plainHost, type Address } from '../address.js';
import { formatDuration } from '../config/formats.js';
import type { Settings } from '../config/settings.js';
import { ConfigError } from '../errors.js';
import { errorText } from '../postgres/session.js';
import { sqlState } from '../postgres/sqlstate.js';
import { within } from '../wait.js';
import { bounded, CommandError, EXIT, HOOK_GRACE_MS } from './exit.js';
import { addSettings, duration, integer, type Io, readSettings, required } from './flags.js';
import {
  type HookPlan,
  type HookTask,
  type MemberState,
  PATRONI_MOMENTS,
  patroniPlan,
  REPMGR_MOMENTS,
  repmgrPlan,
  SUSPECT_MS,
} from './hook-moments.js';
import { isStandby, readPrimary } from './nodes.js';
import {
  asCommandError,
  boundTo,
  isAccepted,
  refusal,
  reportMember,
  submitAndWait,
} from './submit.js';

const USES = ['schema', 'databases'] as const;

/** How long a node may take to say what it is. */
const ASK_MS = 1_000;
/** How long all reports of a hook that does not wait may take. */
const REPORT_MS = 5_000;

interface Flags {
  readonly group?: string;
  readonly host?: string;
  readonly port: string;
  readonly success?: string;
  readonly timeout: string;
}

/** The node that a hook runs for. */
interface Node {
  readonly groupid: number;
  readonly address: Address;
}

export function hookCommand(io: Io): Command {
  const command = new Command('hook')
    .description('what an HA manager calls: reports what its moment means; always ends with 0')
    .argument('<manager>', 'patroni or repmgr')
    .argument('<moment>', 'as the manager calls it, then what it appends')
    .argument('[words...]', "Patroni's action, role and scope")
    .option('--group <groupid>', 'group in pg_dist_node (required)')
    .option('--host <host>', 'host of this node, as pg_dist_node is to have it (required)')
    .option('--port <port>', 'port of this node', '5432')
    .option('--success <0|1>', "%s of repmgr, which every event of repmgr's needs")
    .option(
      '--timeout <duration>',
      'how long traffic waits once repmgr has lost a primary: its attempts x interval + 15s',
      formatDuration(SUSPECT_MS),
    )
    .addHelpText('after', `\n${MOMENTS}`);
  return addSettings(command, USES).action(
    async (manager: string, moment: string, words: string[]) => {
      const settings = readSettings(io, command, USES);
      const flags = command.opts<Flags>();
      const node = nodeOf(flags);
      const plan = planOf(manager, [moment, ...words], flags);
      io.print(await bounded(limitOf(plan), carryOut(settings, plan, node)));
    },
  );
}

const MOMENTS = `Moments:
  patroni  ${PATRONI_MOMENTS.join(', ')}
  repmgr   ${REPMGR_MOMENTS.join(', ')}

Prints one line, on standard output when it is reported or there is nothing to report, else on standard error.
Asks the node itself, with the credentials of MPP_NODE_URL or else of DATABASE_URL, where it matters what it is.`;

/** @throws ConfigError */
function nodeOf(flags: Flags): Node {
  const host = plainHost(required('--host', 'the host of this node', flags.host));
  if (!isHost(host)) {
    throw new ConfigError(
      `--host cannot be ${JSON.stringify(host)}; give the host of this node, without its port`,
    );
  }
  const group = required('--group', 'the group of this node', flags.group);
  return {
    groupid: integer('--group', group, 0, 2_147_483_647),
    address: { host, port: integer('--port', flags.port, 1, 65_535) },
  };
}

/** @throws ConfigError */
function planOf(manager: string, words: readonly string[], flags: Flags): HookPlan {
  const suspectMs = duration('--timeout', flags.timeout, 1);
  if (manager === 'patroni') return patroniPlan(words);
  if (manager === 'repmgr') return repmgrPlan(words[0], { success: flags.success, suspectMs });
  throw new ConfigError(
    `the HA manager cannot be ${JSON.stringify(manager)}; give patroni or repmgr`,
  );
}

/** How long a hook takes at most. */
function limitOf(plan: HookPlan): number {
  if (plan.kind === 'nothing') return HOOK_GRACE_MS;
  return ASK_MS + budgetOf(plan.task) + HOOK_GRACE_MS;
}

/** How long the reports may take, with the wait for an acknowledgement. */
function budgetOf(task: HookTask | null): number {
  return task?.waitMs || REPORT_MS;
}

function leftMs(until: number): number {
  return Math.max(1, Math.ceil(until - performance.now()));
}

/** @returns the line that says what was done. */
async function carryOut(settings: Settings, plan: HookPlan, node: Node): Promise<string> {
  if (plan.kind === 'nothing') return `nothing reported: ${plan.reason}`;
  const until = performance.now() + ASK_MS + budgetOf(plan.task);
  // First the task: one that is open keeps the comparison with pg_dist_node from making another.
  const said = plan.task === null ? null : await reportTask(settings, plan.task, node, until);
  if (plan.member === null) return said ?? '';
  try {
    const member = await sayMember(settings, plan.member, node, until);
    return said === null ? member : `${said}; ${member}`;
  } catch (error) {
    if (said === null) throw asCommandError(error);
    throw new CommandError(
      EXIT.failure,
      `${said}, but it could not be reported as ${plan.member.role}: ${errorText(error)}`,
      error,
    );
  }
}

async function reportTask(
  settings: Settings,
  task: HookTask,
  { groupid, address }: Node,
  until: number,
): Promise<string> {
  const left = (): number => Math.min(budgetOf(task), leftMs(until));
  const subject =
    task.node === 'own' ? address : await readPrimary(boundTo(settings, left()), groupid);
  const reason = await reasonAgainst(settings, task, subject);
  if (reason !== null) return `nothing reported: ${reason}`;
  const reportMs = left();
  const report = {
    event: task.event,
    groupid,
    nodename: subject.host,
    nodeport: subject.port,
    secondaries: null,
    timeoutMs: task.timeoutMs,
    cooldownMs: null,
    pause: null,
  };
  const waitMs = task.waitMs === 0 ? null : reportMs;
  const answer = await submitAndWait(settings, report, { reportMs, waitMs });
  if (waitMs !== null && !isAccepted(answer)) throw refusal(answer, true);
  const why = answer.reason === null ? '' : ` (${answer.reason})`;
  return `${task.event} of ${formatAddress(subject)} is task ${answer.id}: ${answer.status}${why}`;
}

/**
 * Why nothing is to be reported of a node, by its own word; null where the report is right.
 *
 * @throws CommandError when it must be asked and says nothing
 */
async function reasonAgainst(
  settings: Settings,
  { unless }: HookTask,
  subject: Address,
): Promise<string | null> {
  if (unless === null) return null;
  const name = formatAddress(subject);
  const answer = await ask(settings, subject);
  if (unless === 'answers') {
    return answer.isThere ? `${name} answers, so it is no suspect` : null;
  }
  if (answer.standby === undefined) {
    throw new CommandError(
      EXIT.unreachable,
      `nothing reported: ${name} does not say whether it is a primary (${answer.silence}); ` +
        'see that it runs, and that the role of MPP_NODE_URL, or else of DATABASE_URL, may log in there',
    );
  }
  return answer.standby ? `${name} is a standby` : null;
}

interface NodeSays {
  readonly standby?: boolean;
  /** A server that refuses the login is there as well. */
  readonly isThere: boolean;
  readonly silence?: string;
}

async function ask(settings: Settings, subject: Address): Promise<NodeSays> {
  const asked = isStandby(settings, subject, ASK_MS).then(
    (standby): NodeSays => ({ standby, isThere: true }),
    (error: unknown): NodeSays => ({ isThere: hasAnswered(error), silence: errorText(error) }),
  );
  return within(ASK_MS, asked, { isThere: false, silence: `no answer within ${ASK_MS} ms` });
}

/** Anything that a running server has said, other than that it starts or stops. */
function hasAnswered(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const state = sqlState(cause);
    if (state !== undefined) return !state.startsWith('57P');
  }
  return false;
}

async function sayMember(
  settings: Settings,
  { role, state }: MemberState,
  { groupid, address }: Node,
  until: number,
): Promise<string> {
  await reportMember(settings, { groupid, ...address, role, state }, leftMs(until));
  return `${formatAddress(address)} is reported as ${role}, ${state}`;
}
