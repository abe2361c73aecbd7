import type { Connection } from '../../../src/postgres/session.js';
import { exists } from '../../kit/servers/folder.js';
import { APPLICATION_NAME, type IdRange, type RunningClient } from './client.js';
import { firstThatRuns } from './process.js';
import { programFile, startWorkerProgram } from './worker-program.js';

/** Where Debian's libpostgresql-jdbc-java puts it. */
const DRIVER = '/usr/share/java/postgresql.jar';

/** `simple` sends text, `extended` parses each time, `prepared` keeps statements on the server. */
export type JdbcProtocol = 'simple' | 'extended' | 'prepared';

const PARAMETERS: Readonly<Record<JdbcProtocol, Readonly<Record<string, string>>>> = {
  simple: { preferQueryMode: 'simple' },
  extended: { prepareThreshold: '0' },
  prepared: { prepareThreshold: '1' },
};

/** What is missing to run a source file with the driver; undefined when nothing is. */
export async function whatJdbcLacks(): Promise<string | undefined> {
  if (!(await exists(DRIVER))) {
    return `${DRIVER} is not there (Debian: libpostgresql-jdbc-java)`;
  }
  // The JRE alone runs no source files.
  const java = await firstThatRuns(['java'], ['--describe-module', 'jdk.compiler']);
  return java === undefined ? 'no JDK is installed (Debian: default-jdk-headless)' : undefined;
}

export async function startJdbc(
  protocol: JdbcProtocol,
  { host, port, user, database }: Connection,
  range: IdRange,
): Promise<RunningClient> {
  const parameters = new URLSearchParams({
    user: String(user),
    ApplicationName: APPLICATION_NAME,
    ...PARAMETERS[protocol],
  });
  // The driver decodes %20, and takes a plus for what it is.
  const query = parameters.toString().replaceAll('+', '%20');
  return startWorkerProgram(
    // A small heap and no optimizing compiler: two of them start beside the servers.
    [
      'java',
      '-Xmx128m',
      '-XX:+UseSerialGC',
      '-XX:TieredStopAtLevel=1',
      '-cp',
      DRIVER,
      programFile('JdbcClient.java'),
    ],
    {
      CLIENT_URL: `jdbc:postgresql://${String(host)}:${String(port)}/${String(database)}?${query}`,
    },
    range,
  );
}
