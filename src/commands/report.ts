import { Command } from 'commander';
import { formatAddress, parseAddress } from '../address.js';
import { ConfigError } from '../errors.js';
import { addSettings, duration, integer, type Io, readSettings } from './flags.js';
import { asCommandError, reportMember } from './submit.js';

const USES = ['schema', 'databases'] as const;

export function reportCommand(io: Io): Command {
  const command = new Command('report')
    .description(
      'say what a node of a group is now (mpp_report): within a heartbeat pg_dist_node follows; for members of mpp_client',
    )
    .argument('<groupid>', 'group in pg_dist_node; 0 is the coordinator')
    .argument('<host:port>', 'the node, as pg_dist_node is to have it')
    .argument('<role>', 'primary or secondary, or the word of an HA manager, such as replica')
    .option(
      '--state <word>',
      'running, stopped or another word; removed takes the node out',
      'running',
    )
    .option('--timeout <duration>', 'how long it may take', '10s');
  return addSettings(command, USES).action(async (group: string, node: string, role: string) => {
    const settings = readSettings(io, command, USES);
    const { state, timeout } = command.opts<{ state: string; timeout: string }>();
    const groupid = integer('<groupid>', group, 0, 2_147_483_647);
    const { host, port } = nodeOf(node);
    const withinMs = duration('--timeout', timeout, 1);
    await reportMember(settings, { groupid, host, port, role, state }, withinMs).catch(
      (error: unknown) => {
        throw asCommandError(error);
      },
    );
    io.print(
      `${formatAddress({ host, port })} of group ${groupid} is reported as ${role}, ${state}`,
    );
  });
}

/** The database decides whether it is a host. @throws ConfigError */
function nodeOf(text: string): { host: string; port: number } {
  const { host, port } = parseAddress(/:\d+$/.test(text) ? text : `${text}:5432`);
  if (host !== '' && Number.isInteger(port) && port >= 1 && port <= 65_535) return { host, port };
  throw new ConfigError(
    `the node cannot be ${JSON.stringify(text)}; give host:port, or [address]:port for IPv6`,
  );
}
