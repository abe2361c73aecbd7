import type { Finding, Level } from '../../../src/doctor/finding.js';
import { main } from '../../../src/commands/program.js';
import type { CommandResult } from '../cli.js';
import type { ControllerProcess } from '../controller-process.js';
import { Harness } from '../harness.js';
import { RestServer } from '../patroni/rest-server.js';
import type { Server, Template } from '../servers/index.js';
import { waitUntilSynced } from '../standin/observe.js';

export interface Outcome {
  readonly exitCode: number | null;
  readonly findings: readonly Finding[];
}

export interface DoctorOptions {
  readonly node?: string;
  readonly user?: string;
  readonly database?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly args?: readonly string[];
}

/** The ids of findings of these levels. */
export function wrong({ findings }: Outcome, levels: readonly Level[] = ['error']): string[] {
  return findings.filter(({ level }) => levels.includes(level)).map(({ id }) => id);
}

/** A shell's line that a test does not run: it looks only, or is about what is not there. */
const NOT_RUN = /^(psql|pg_isready|curl|export|unset|sudo|DATABASE_URL=)/;

/** What a server must have so that nothing is wrong with its parameters. */
const SETTINGS = {
  max_worker_processes: 20,
  'citus.local_hostname': '127.0.0.1',
  'citus.metadata_sync_retry_interval': '200ms',
};

/**
 * A healthy cluster for the command doctor: secondaries are registered, and the role `keeper` has all that a
 * controller needs without being a superuser.
 */
export class Clinic {
  readonly h: Harness;
  readonly patroni: RestServer;

  private constructor(h: Harness, patroni: RestServer) {
    this.h = h;
    this.patroni = patroni;
  }

  static async open(template: Template): Promise<Clinic> {
    const h = await Harness.start({ template, secondaries: true, settings: SETTINGS });
    const clinic = new Clinic(h, await RestServer.start());
    for (const role of ['app', 'shop']) await clinic.onPrimaries(`CREATE ROLE ${role}`);
    await clinic.onPrimaries('CREATE ROLE keeper LOGIN');
    await clinic.onPrimaries('GRANT app, pg_monitor, pg_signal_backend TO keeper');
    await clinic.onPrimaries('GRANT SET ON PARAMETER deadlock_timeout TO keeper');
    await clinic.onPrimaries('GRANT EXECUTE ON FUNCTION pg_control_system() TO keeper');
    for (const table of ['items', 'notes', 'lookup']) {
      await clinic.onPrimaries(`ALTER TABLE ${table} OWNER TO app`);
    }
    await clinic.run(['bootstrap']);
    await h.db.query('GRANT mpp_controller TO keeper');
    return clinic;
  }

  async startController(): Promise<ControllerProcess> {
    await this.h.reconnect();
    return this.h.startController({ MPP_TOPOLOGY: 'table' });
  }

  async doctor(options: DoctorOptions = {}): Promise<Outcome> {
    const args = ['doctor', '--json', ...(options.args ?? [])];
    const { exitCode, stdout, stderr } = await this.run(args, options);
    try {
      return { exitCode, ...(JSON.parse(stdout) as { findings: Finding[] }) };
    } catch (error) {
      throw new Error(`doctor gave no JSON: ${stdout}${stderr}`, { cause: error });
    }
  }

  /** In this process: a start of Node.js for each fault would take longer than all else. */
  async run(args: readonly string[], options: DoctorOptions = {}): Promise<CommandResult> {
    const { node = this.coordinator.address, user = 'postgres', database = 'postgres' } = options;
    const [stdout, stderr]: [string[], string[]] = [[], []];
    const exitCode = await main(args, {
      env: { ...options.env, DATABASE_URL: `postgresql://${user}@${node}/${database}` },
      print: (text) => stdout.push(`${text}\n`),
      complain: (text) => stderr.push(`${text}\n`),
    });
    return { exitCode, stdout: stdout.join(''), stderr: stderr.join('') };
  }

  get coordinator(): Server {
    return this.h.cluster.coordinator;
  }

  /** Runs the lines of a fix as an operator does who is a superuser. */
  async paste(lines: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
    let session = await this.coordinator.connect();
    try {
      for (const line of lines) {
        const [, address] = /^-- on (\S+)/.exec(line) ?? [];
        const [, restarted] = /^-- (?:then )?restart PostgreSQL on (\S+)/.exec(line) ?? [];
        if (address !== undefined) {
          await session.end();
          session = await this.server(address).connect();
        } else if (restarted !== undefined) await this.restart(this.server(restarted));
        else if (line.startsWith('mpp-controller run')) return;
        else if (line.startsWith('mpp-controller')) {
          await this.run(
            line
              .replace(/\s*#.*/, '')
              .split(' ')
              .slice(1),
            { env },
          );
        } else if (!/^(--|#)/.test(line) && !NOT_RUN.test(line)) await session.query(line);
      }
    } finally {
      await session.end().catch(() => undefined);
    }
  }

  async restart(server: Server): Promise<void> {
    await server.restart();
    if (server === this.coordinator) await this.h.reconnect();
  }

  server(address: string): Server {
    const servers = this.h.cluster.groups.flatMap((group) => [
      group.primary,
      ...(group.hasStandby ? [group.standby] : []),
    ]);
    const found = servers.find((server) => server.address === address);
    if (found === undefined) throw new Error(`there is no server ${address}`);
    return found;
  }

  async on(server: Server, ...statements: readonly string[]): Promise<void> {
    await server.withSession(async (session) => {
      for (const statement of statements) await session.query(statement);
    });
  }

  /** Citus sends it to the workers by itself; the stand-in does not. */
  async onPrimaries(statement: string): Promise<void> {
    if (this.h.cluster.hasCitus) await waitUntilSynced(this.h.db);
    await this.h.db.query(statement);
    if (this.h.cluster.hasCitus) return;
    for (const { primary } of this.h.cluster.workers) await this.on(primary, statement);
  }

  async close(): Promise<void> {
    await this.patroni.stop();
    await this.h.stop();
  }
}
