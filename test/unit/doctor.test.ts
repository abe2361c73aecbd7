import { describe, expect, it } from 'vitest';
import { findingsText } from '../../src/commands/doctor.js';
import { findings } from '../../src/doctor/checks.js';
import { LEVELS, setParameter, worstOf, type Finding } from '../../src/doctor/finding.js';
import type { HostSeen, LocalSeen, NodeSeen, Observed } from '../../src/doctor/observed.js';

const LOCAL: LocalSeen = {
  clockMs: 0,
  clockErrorMs: 0,
  isEncrypted: false,
  pendingRestart: [],
  prepared: [],
  transactions: [],
  slots: [],
  standbys: [],
};

const ANSWER = {
  inRecovery: false,
  timeline: 1,
  systemIdentifier: '7',
  localGroup: null,
  startedAt: '1',
};

const COORDINATOR: HostSeen = {
  node: '127.0.0.1:5432',
  groupid: 0,
  role: 'primary',
  nodeid: 1,
  isCoordinator: true,
  answer: ANSWER,
  local: LOCAL,
  gucs: [],
  rights: null,
  locks: [],
};

const WORKER: HostSeen = {
  ...COORDINATOR,
  node: '127.0.0.1:5433',
  groupid: 1,
  nodeid: 2,
  isCoordinator: false,
};

function row(groupid: number, port: number, more: Partial<NodeSeen> = {}): NodeSeen {
  return {
    nodeid: groupid + 1,
    groupid,
    address: { host: '127.0.0.1', port },
    role: 'primary',
    isInCluster: true,
    isActive: true,
    hasMetadata: true,
    isSynced: true,
    ...more,
  };
}

/** A cluster in which nothing is wrong. */
const HEALTHY: Observed = {
  target: {
    node: '127.0.0.1:5432',
    database: 'app',
    user: 'mpp',
    nodeUser: 'mpp',
    schema: 'public',
    maxSessions: 50,
    strategy: 'auto',
    olderMs: 60_000,
  },
  unknownVariables: [],
  unreachable: null,
  server: {
    version: 170_000,
    inRecovery: false,
    follows: null,
    citus: '13.2-1',
    citusAvailable: '13.2-1',
    isReadOnly: false,
    readOnlySource: 'default',
    isSuperuser: false,
    isMember: true,
    localGroup: 0,
    coordinator: '127.0.0.1:5432',
  },
  schema: { code: null, reason: '', isOpen: false },
  strategy: { means: { strategies: ['shard-locks'], maySignal: true }, name: 'shard-locks' },
  rights: [],
  connections: { max: 200, reserved: 3 },
  catalog: { nodes: [row(0, 5432), row(1, 5433)], groupsWithShards: [1] },
  triggers: [],
  work: {
    controllers: [
      { state: 'active', host: 'a', version: '1.0.0' },
      { state: 'standby', host: 'b', version: '1.0.0' },
    ],
    blockers: [],
    pending: [],
    holds: [],
  },
  groups: { systems: [], unregistered: [] },
  hosts: [COORDINATOR, WORKER],
  patroni: [],
  failures: [],
};

function problemsOf(more: Partial<Observed>): Finding[] {
  return findings({ ...HEALTHY, ...more }).filter(({ level }) => level !== 'ok');
}

function worker(more: Partial<HostSeen>): Partial<Observed> {
  return { hosts: [COORDINATOR, { ...WORKER, ...more }] };
}

describe('what the doctor makes of what it has seen', () => {
  it('a cluster in which nothing is wrong is ok in every check', () => {
    expect(problemsOf({})).toEqual([]);
    expect(worstOf(findings(HEALTHY))).toBe('ok');
  });

  it('the worst findings come first', () => {
    const found = findings({
      ...HEALTHY,
      unknownVariables: ['MPP_X'],
      work: null,
      schema: { code: null, reason: '', isOpen: true },
    });
    const order = found.map(({ level }) => LEVELS.indexOf(level));
    expect(order).toEqual([...order].sort((one, other) => other - one));
    expect(found[0]?.id).toBe('schema-open');
  });

  it('a check says nothing of what was not read', () => {
    const found = findings({ ...HEALTHY, work: null, hosts: [], catalog: null });
    expect(found.map(({ id }) => id)).not.toContain('controller-none');
    expect(found.map(({ id }) => id)).not.toContain('node-silent');
    expect(found.map(({ id }) => id)).not.toContain('clock');
  });

  it.each([
    ['SCHEMA_OLDER', 'schema-older', ['mpp-controller migrate']],
    ['SCHEMA_NEWER', 'schema-newer', [expect.stringContaining('# install')]],
  ])('a schema with the code %s is %s', (code, id, fix) => {
    const [found, ...more] = problemsOf({ schema: { code, reason: 'why', isOpen: false } });
    expect(found).toMatchObject({ id, level: 'error', actual: 'why', fix });
    expect(more).toEqual([]);
  });

  it('clocks that differ by more than a second, whatever the answer took, are a warning', () => {
    const ahead = (clockMs: number, clockErrorMs: number) =>
      problemsOf(worker({ local: { ...LOCAL, clockMs, clockErrorMs } })).map(({ id }) => id);
    expect(ahead(1_000, 0)).toEqual([]);
    expect(ahead(1_500, 600)).toEqual([]);
    expect(ahead(-1_500, 100)).toEqual(['clock']);
  });

  it('a session with a remote node that is not encrypted is a note', () => {
    const node = 'worker-1.example:5432';
    expect(problemsOf(worker({ node })).map(({ id, level }) => [id, level])).toEqual([
      ['tls-off', 'note'],
    ]);
    const local = { ...LOCAL, isEncrypted: true };
    expect(problemsOf(worker({ node, local }))).toEqual([]);
  });

  it('a node without room for the locks of a hold gets what its parameter must be', () => {
    const locks = [
      { groupid: 1, needed: 10, room: 20, setting: null },
      { groupid: 2, needed: 30, room: 20, setting: 77 },
    ];
    expect(problemsOf(worker({ locks }))).toMatchObject([
      {
        id: 'max-locks',
        node: WORKER.node,
        fix: [
          `-- on ${WORKER.node}`,
          "ALTER SYSTEM SET max_locks_per_transaction = '77';",
          `-- then restart PostgreSQL on ${WORKER.node}`,
        ],
      },
    ]);
  });

  it('a transaction that is open on a standby blocks no hold', () => {
    const one = { pid: 7, role: 'app', application: 'report', state: 'active', ageMs: 90_000 };
    const local = { ...LOCAL, transactions: [one] };
    expect(problemsOf(worker({ local })).map(({ id }) => id)).toEqual(['transaction-open']);
    const answer = { ...ANSWER, inRecovery: true, timeline: null };
    expect(problemsOf(worker({ local, answer, role: 'secondary' }))).toEqual([]);
  });

  it("a prepared transaction of Citus's own is left to its recovery", () => {
    const prepared = [{ gid: 'citus_0_1_2_3', ageMs: 90_000 }];
    const [found] = problemsOf(worker({ local: { ...LOCAL, prepared } }));
    expect(found).toMatchObject({ id: 'prepared-transaction', level: 'warning' });
    expect(found?.fix[1]).toBe('SELECT recover_prepared_transactions();');
  });

  it('names are quoted in what is to be pasted', () => {
    const target = { ...HEALTHY.target, schema: `My "S"`, user: `it's` };
    const schema = { code: null, reason: '', isOpen: true };
    expect(problemsOf({ target, schema })[0]?.fix[1]).toBe(
      'REVOKE CREATE ON SCHEMA "My ""S""" FROM PUBLIC;',
    );
    const prepared = [{ gid: `it's`, ageMs: 90_000 }];
    const [found] = problemsOf(worker({ local: { ...LOCAL, prepared } }));
    expect(found?.fix[1]).toBe(`ROLLBACK PREPARED 'it''s';`);
  });

  it('a standby that is promoted without a report is what the fix reports', () => {
    const standby: HostSeen = { ...WORKER, node: '127.0.0.1:5434', nodeid: 3, role: 'secondary' };
    const primary = { ...WORKER, answer: { ...ANSWER, inRecovery: true, timeline: null } };
    const found = problemsOf({ hosts: [COORDINATOR, primary, standby] });
    expect(found.map(({ id, node }) => [id, node])).toEqual([['node-recovery', primary.node]]);
    expect(found[0]?.fix[1]).toBe(
      `INSERT INTO "public".mpp_tasks (event, groupid, nodename, nodeport) VALUES ('after_promote', 1, '127.0.0.1', 5434);`,
    );
    const both = problemsOf({ hosts: [COORDINATOR, WORKER, standby] });
    expect(both.map(({ id, node }) => [id, node])).toEqual([['node-recovery', standby.node]]);
    expect(both[0]?.fix[1]).toBe(`SELECT citus_remove_node('127.0.0.1', 5434);`);
  });

  it('a silent secondary is a warning, a silent primary an error', () => {
    const answer = { silence: 'nothing', isRefused: false, isMissingDatabase: false };
    const level = (role: HostSeen['role']) =>
      problemsOf(worker({ role, answer, local: null })).map((one) => [one.id, one.level]);
    expect(level('primary')).toEqual([['node-silent', 'error']]);
    expect(level('secondary')).toEqual([['node-silent', 'warning']]);
  });
});

describe('what the doctor prints', () => {
  it('the last line counts the findings of each level', () => {
    const found = findings({ ...HEALTHY, unknownVariables: ['MPP_X'] });
    const lines = findingsText(found).split('\n');
    expect(lines.slice(0, 3)).toEqual([
      'WARNING',
      expect.stringMatching(/^ {2}settings-unknown: The variable MPP_X is no setting/),
      '      unset MPP_X',
    ]);
    expect(lines.at(-1)).toMatch(/^0 error, 1 warning, 0 note, \d+ ok$/);
  });

  it('a list of libraries is set as a list', () => {
    expect(setParameter('a:1', 'shared_preload_libraries', ['citus', "x's"], true)[1]).toBe(
      `ALTER SYSTEM SET shared_preload_libraries = 'citus', 'x''s';`,
    );
  });
});
