import { Command } from 'commander';
import { formatAddress } from '../address.js';
import { CommandError, EXIT } from './exit.js';
import { addSettings, duration, integer, type Io, readSettings } from './flags.js';
import { askAsOperator } from './operator.js';
import { asCommandError, isAccepted, isOpen, waitForTask } from './submit.js';

const USES = ['schema', 'databases'] as const;
const MOST_ID = 1e15;

export function waitCommand(io: Io): Command {
  const command = new Command('wait')
    .description('wait until a task is acknowledged: holding, or ended')
    .argument('<task>', 'id of the task')
    .option('--timeout <duration>', 'how long at most', '30s');
  return addSettings(command, USES).action(async (text: string) => {
    const settings = readSettings(io, command, USES);
    const id = taskId(text);
    const waitMs = duration('--timeout', command.opts<{ timeout: string }>().timeout, 0);
    const answer = await waitForTask(settings, id, waitMs).catch((error: unknown) => {
      throw asCommandError(error);
    });
    const { status, reason } = answer;
    const said = `task ${id}: ${status}${reason === null ? '' : `: ${reason}`}`;
    if (isAccepted(answer)) {
      io.print(said);
      return;
    }
    throw new CommandError(isOpen(answer) ? EXIT.timedOut : EXIT.refused, said);
  });
}

export function cancelCommand(io: Io): Command {
  const command = new Command('cancel')
    .description('cancel a pending task; for members of mpp_operator')
    .argument('<task>', 'id of the task');
  return addSettings(command, USES).action(async (text: string) => {
    const settings = readSettings(io, command, USES);
    const id = taskId(text);
    await askAsOperator(settings, 'SELECT @mpp.mpp_cancel($1::bigint)', [id]);
    io.print(`task ${id} is cancelled`);
  });
}

export function releaseCommand(io: Io): Command {
  const command = new Command('release')
    .description(
      "end a group's hold by rollback, so that its traffic goes on; for members of mpp_operator",
    )
    .argument('<groupid>', 'group in pg_dist_node');
  return addSettings(command, USES).action(async (text: string) => {
    const settings = readSettings(io, command, USES);
    const groupid = integer('<groupid>', text, 0, 2_147_483_647);
    const [row] = await askAsOperator<{ held: boolean }>(
      settings,
      'SELECT @mpp.mpp_release($1::integer) AS held',
      [groupid],
    );
    io.print(
      row?.held === true
        ? `the hold of group ${groupid} is ended; its traffic goes on to the node that pg_dist_node names`
        : `group ${groupid} was not held`,
    );
  });
}

export function explainCommand(io: Io): Command {
  const command = new Command('explain')
    .description('tell what became of a task, step by step; for members of mpp_operator')
    .argument('<task>', 'id of the task')
    .option('--json', 'print it as one JSON object');
  return addSettings(command, USES).action(async (text: string) => {
    const settings = readSettings(io, command, USES);
    const id = taskId(text);
    const [row] = await askAsOperator<{ explained: Explained }>(settings, EXPLAIN, [id]);
    if (row === undefined)
      throw new CommandError(EXIT.usage, `there is no task ${id}; was it pruned?`);
    if (command.opts<{ json?: true }>().json === true) io.print(JSON.stringify(row.explained));
    else for (const line of tell(row.explained)) io.print(line);
  });
}

function taskId(text: string): string {
  return String(integer('<task>', text, 1, MOST_ID));
}

interface Explained {
  readonly id: string;
  readonly event: string;
  readonly groupid: number;
  readonly nodename: string;
  readonly nodeport: number;
  readonly source: string;
  readonly createdBy: string;
  /** With a time zone. */
  readonly createdAt: string;
  readonly log: readonly LogEntry[];
}

interface LogEntry {
  readonly status: string;
  readonly reason: string | null;
  readonly attempt: number;
  readonly controller: string | null;
  readonly loggedBy: string;
  /** After the task was made, in milliseconds. */
  readonly afterMs: number;
  readonly before: readonly NodeRow[] | null;
  readonly after: readonly NodeRow[] | null;
}

interface NodeRow {
  readonly nodeid: number;
  readonly noderole: string;
  readonly nodename: string;
  readonly nodeport: number;
}

function tell(task: Explained): string[] {
  const node = formatAddress({ host: task.nodename, port: task.nodeport });
  const head =
    `task ${task.id}: ${task.event} of group ${task.groupid} for ${node}, ` +
    `by ${task.createdBy} (${task.source}), ${task.createdAt}`;
  return [head, ...task.log.flatMap(tellEntry)];
}

function tellEntry(entry: LogEntry): string[] {
  const { status, reason, attempt, controller, afterMs, before, after } = entry;
  // What clients and operators did, the reason tells.
  const actor =
    controller === null
      ? ''
      : ` by controller ${controller}${attempt > 1 ? `, attempt ${attempt}` : ''}`;
  const time = `${(afterMs / 1_000).toFixed(3)} s`.padStart(12);
  return [
    `${time}  ${status}${actor}${reason === null ? '' : `: ${reason}`}`,
    ...tellRows('before', before),
    ...tellRows('after', after),
  ];
}

function tellRows(when: string, rows: readonly NodeRow[] | null): string[] {
  return (rows ?? []).map(
    ({ nodeid, noderole, nodename, nodeport }) =>
      `${when.padStart(20)}  ${formatAddress({ host: nodename, port: nodeport })} ${noderole}, nodeid ${nodeid}`,
  );
}

/** Locks nothing. Finds the task by its key and its log by an index. */
const EXPLAIN = `
  SELECT json_build_object(
    'id', t.id::text, 'event', t.event, 'groupid', t.groupid, 'nodename', t.nodename, 'nodeport', t.nodeport,
    'source', t.source, 'createdBy', t.created_by, 'createdAt', to_char(t.created_at, 'YYYY-MM-DD HH24:MI:SS.MS OF'),
    'log', (
      SELECT json_agg(json_build_object(
               'status', l.status, 'reason', l.reason, 'attempt', l.attempt, 'controller', l.controller,
               'loggedBy', l.logged_by,
               'afterMs', round(extract(epoch FROM l.logged_at - t.created_at) * 1000, 3),
               'before', l.node_before, 'after', l.node_after) ORDER BY l.id)
      FROM @mpp.mpp_task_log AS l
      WHERE l.task_id = t.id)) AS explained
  FROM @mpp.mpp_tasks AS t
  WHERE t.id = $1::bigint`;
