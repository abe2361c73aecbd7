import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  currentGucs,
  parseLibraries,
  planGucs,
  preloadsCitus,
  type CurrentGucs,
} from '../../src/mpp/citus/gucs.js';
import type { GucState, WantedGucs } from '../../src/mpp/abstract.js';

const RIGHT: CurrentGucs['values'] = {
  shared_preload_libraries: 'citus',
  max_prepared_transactions: '200',
  max_worker_processes: '16',
  wal_level: 'logical',
  'citus.local_hostname': 'localhost',
  'citus.metadata_sync_retry_interval': '1s',
};

function plan(
  values: Partial<CurrentGucs['values']>,
  maxConnections = 100,
  wanted: Partial<WantedGucs> = {},
  chosen: readonly string[] = [],
) {
  return planGucs(
    { values: { ...RIGHT, ...values }, maxConnections, chosen: new Set(chosen) },
    { localHostname: 'localhost', isHostnameNamed: false, databases: 1, ...wanted },
  );
}

describe('planGucs', () => {
  it('has nothing to do on a server that is right', () => {
    expect(plan({})).toEqual([]);
  });

  it('plans all of them on a fresh server', () => {
    const fresh = {
      shared_preload_libraries: '',
      max_prepared_transactions: '0',
      max_worker_processes: '8',
      wal_level: 'replica',
      'citus.local_hostname': null,
      'citus.metadata_sync_retry_interval': null,
    };
    expect(plan(fresh, 150)).toEqual([
      { name: 'shared_preload_libraries', current: '', wanted: ['citus'] },
      { name: 'max_prepared_transactions', current: '0', wanted: ['300'] },
      { name: 'max_worker_processes', current: '8', wanted: ['11'] },
      { name: 'wal_level', current: 'replica', wanted: ['logical'] },
      { name: 'citus.local_hostname', current: null, wanted: ['localhost'] },
      { name: 'citus.metadata_sync_retry_interval', current: null, wanted: ['200ms'] },
    ]);
  });

  it.each([
    ['pg_stat_statements', ['citus', 'pg_stat_statements']],
    ['pg_stat_statements, citus', ['citus', 'pg_stat_statements']],
    ['pg_stat_statements,citus,auto_explain', ['citus', 'pg_stat_statements', 'auto_explain']],
    ['"$libdir/auto_explain", $libdir/citus', ['$libdir/citus', '$libdir/auto_explain']],
    ['citus, citus', ['citus']],
    ['citus_columnar', ['citus', 'citus_columnar']],
    ['Citus', ['citus', 'Citus']],
    ['"a,b", "c""d"', ['citus', 'a,b', 'c"d']],
  ])('puts citus first in %j and keeps the rest', (current, wanted) => {
    expect(plan({ shared_preload_libraries: current })).toEqual([
      { name: 'shared_preload_libraries', current, wanted },
    ]);
  });

  it.each(['citus', 'citus, pg_stat_statements', '"$libdir/citus",x', ' citus.so , x'])(
    'leaves %j alone',
    (current) => {
      expect(plan({ shared_preload_libraries: current })).toEqual([]);
    },
  );

  it('leaves a number of prepared transactions that an operator chose', () => {
    expect(plan({ max_prepared_transactions: '5' })).toEqual([]);
  });

  it('shortens the time after which Citus sends a row again, unless an operator has chosen one', () => {
    const name = 'citus.metadata_sync_retry_interval';
    expect(plan({ [name]: '5s' })).toEqual([{ name, current: '5s', wanted: ['200ms'] }]);
    expect(plan({ [name]: '10s' })).toEqual([]);
  });

  it('leaves an interval that stands in a file, though it is the default', () => {
    const name = 'citus.metadata_sync_retry_interval';
    expect(plan({ [name]: '5s' }, 100, {}, [name])).toEqual([]);
  });

  it('replaces the name of a node only by one that was given', () => {
    const name = 'citus.local_hostname';
    const current = '127.0.0.1';
    expect(plan({ [name]: current })).toEqual([]);
    expect(plan({ [name]: current }, 100, { isHostnameNamed: true })).toEqual([
      { name, current, wanted: ['localhost'] },
    ]);
    expect(plan({ [name]: null })).toEqual([{ name, current: null, wanted: ['localhost'] }]);
  });

  it('has room for the background workers of each database with Citus', () => {
    const name = 'max_worker_processes';
    expect(plan({ [name]: '16' }, 100, { databases: 7 })).toEqual([
      { name, current: '16', wanted: ['29'] },
    ]);
    expect(plan({ [name]: '29' }, 100, { databases: 7 })).toEqual([]);
  });

  it('plans nothing more once its plan is carried out', () => {
    const library = fc.constantFrom('citus', 'a', 'b c', 'd,e', '$libdir/f', 'g"h');
    fc.assert(
      fc.property(fc.array(library), (libraries) => {
        const quoted = libraries.map((name) => `"${name.replaceAll('"', '""')}"`).join(', ');
        const [change] = plan({ shared_preload_libraries: quoted });
        const after = (change?.wanted ?? libraries).map(
          (name) => `"${name.replaceAll('"', '""')}"`,
        );
        expect(plan({ shared_preload_libraries: after.join(', ') })).toEqual([]);
        expect(new Set(after.map((name) => parseLibraries(name)[0]))).toEqual(
          new Set(['citus', ...libraries]),
        );
      }),
    );
  });
});

describe('preloadsCitus', () => {
  it('is not misled by names that look alike', () => {
    expect(preloadsCitus('pg_stat_statements, citus')).toBe(true);
    expect(preloadsCitus('citus_columnar, "a,citus,b"')).toBe(false);
  });
});

describe('currentGucs', () => {
  const state = (name: GucState['name'], more: Partial<GucState> = {}): GucState => ({
    name,
    running: '0',
    configured: null,
    pendingRestart: false,
    onCommandLine: false,
    needsRestart: true,
    ...more,
  });
  const of = (...states: GucState[]) => currentGucs(new Map(states.map((one) => [one.name, one])));

  it('takes what the files say where a restart is pending', () => {
    const waiting = state('wal_level', {
      running: 'replica',
      configured: 'logical',
      pendingRestart: true,
    });
    expect(of(waiting).values.wal_level).toBe('logical');
  });

  it('takes what is running where the files say otherwise and have no effect', () => {
    const overridden = state('wal_level', { running: 'replica', configured: 'logical' });
    expect(of(overridden).values.wal_level).toBe('replica');
  });

  it('takes what the files say of a parameter that is not loaded yet', () => {
    const unknown = state('citus.local_hostname', { running: null, configured: 'db1' });
    expect(of(unknown).values['citus.local_hostname']).toBe('db1');
    expect(of().values['citus.local_hostname']).toBeNull();
  });
});
