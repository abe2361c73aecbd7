import { join } from 'node:path';
import { Command } from 'commander';
import { ConfigError } from '../errors.js';
import { packageVersion } from '../package-root.js';
import type { Io } from './flags.js';

interface UnitOptions {
  /** Absolute paths of Node.js and of the command. */
  readonly node: string;
  readonly cli: string;
  /** As whom it runs. */
  readonly user: string;
  /** File with the settings, as `NAME=value` lines. */
  readonly envFile: string;
  readonly version: string;
}

export function systemdCommand(io: Io): Command {
  const command = new Command('systemd')
    .description('print a unit file for systemd that runs this installation')
    .option('--user <name>', 'as whom it runs', 'mpp-controller')
    .option('--env-file <path>', 'file with the settings', '/etc/mpp-controller/env')
    .addHelpText(
      'after',
      '\nAs root: mpp-controller systemd > /etc/systemd/system/mpp-controller.service && systemctl daemon-reload',
    );
  return command.action(() => {
    const { user, envFile } = command.opts<{ user: string; envFile: string }>();
    checkUnit(user, envFile);
    const cli = join(import.meta.dirname, '..', 'cli.js');
    const version = packageVersion();
    io.print(unitFile({ node: process.execPath, cli, user, envFile, version }).trimEnd());
  });
}

/** @throws ConfigError */
function checkUnit(user: string, envFile: string): void {
  if (!/^[A-Za-z_][A-Za-z0-9_.-]*\$?$/.test(user)) {
    throw new ConfigError(
      `--user cannot be ${JSON.stringify(user)}; give the name of a system user`,
    );
  }
  if (!/^\/[^\p{Cc}]*$/u.test(envFile)) {
    throw new ConfigError(
      `--env-file cannot be ${JSON.stringify(envFile)}; give the absolute path of a file`,
    );
  }
}

/** The unit file. Pure. */
// eslint-disable-next-line max-lines-per-function -- one text
export function unitFile({ node, cli, user, envFile, version }: UnitOptions): string {
  return `\
# mpp-controller ${version}, printed by: mpp-controller systemd
# Own changes belong into a drop-in: systemctl edit mpp-controller

[Unit]
Description=Keeps pg_dist_node of a Citus coordinator right through failovers
Wants=network-online.target
After=network-online.target postgresql.service
StartLimitIntervalSec=5min
StartLimitBurst=20

[Service]
# Ready once it is active, stands by, or waits for the coordinator: see the status line of systemctl status.
Type=notify
# Notifications are sent by systemd-notify, a child process.
NotifyAccess=all
# Pings stop when a loop of the controller hangs, not when PostgreSQL does. Statements may take seconds: keep 1min or more.
WatchdogSec=2min
# A core file would hold passwords. PostgreSQL rolls its holds back.
WatchdogSignal=SIGKILL
LimitCORE=0
TimeoutStopSec=30s

User=${user}
# Readable by root alone: it may hold passwords (DATABASE_URL, MPP_NODE_URL, MPP_PATRONI_AUTH).
EnvironmentFile=-${escapeText(envFile)}
ExecStart=${quote(node)} ${quote(cli)} run

Restart=on-failure
RestartSec=5s
# 2: a person has to change a setting, a right or the database. A restart would not.
RestartPreventExitStatus=2

# It writes no files. ~/.pgpass under /home is hidden: set PGPASSFILE to another place.
# A socket of PostgreSQL in /tmp is hidden, too; that in /run/postgresql is not.
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RemoveIPC=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
# Name resolution asks by netlink which kinds of addresses this host has.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# Not possible with Node.js: V8 compiles JavaScript to machine code in memory that it writes and then executes.
MemoryDenyWriteExecute=no

[Install]
WantedBy=multi-user.target
`;
}

/** A path as systemd takes it: percent signs and dollars would be replaced. */
function quote(path: string): string {
  const text = escapeText(path).replaceAll('\\', '\\\\').replaceAll('"', '\\"');
  return `"${text.replaceAll('$', '$$$$')}"`;
}

function escapeText(path: string): string {
  return path.replaceAll('%', '%%');
}
