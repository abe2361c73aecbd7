import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import {
  callStatement,
  ContractServer,
  FINE,
  insertStatement,
  refusal,
  SCHEMAS,
  type ContractDatabase,
  type TaskValues,
} from '../kit/contract.js';
import { LONGEST_HOST } from '../kit/host-cases.js';

/** The ways in. `source` and `status` are not arguments of every one. */
const WAYS = [
  { way: 'INSERT', knows: ['source', 'status'], statement: insertStatement },
  {
    way: 'mpp_submit',
    knows: ['source'],
    statement: (values: TaskValues) => callStatement('SELECT mpp_submit', values),
  },
  {
    way: 'mpp_request',
    knows: [],
    statement: (values: TaskValues) =>
      callStatement('CALL mpp_request', values, ', id => NULL, status => NULL'),
  },
] as const;

interface Refused {
  readonly name: string;
  readonly values: TaskValues;
  /** The column that the error names. */
  readonly column: string;
  readonly hint?: boolean;
}

const column =
  (name: string, hint = true) =>
  ([label, value]: readonly [string, unknown]): Refused => ({
    name: `${name}: ${label}`,
    values: { [name]: value },
    column: name,
    hint,
  });

const same = (value: unknown) => [String(value), value] as const;

const REFUSED: readonly Refused[] = [
  ...[same('promote'), same(''), same('BEFORE_DEMOTE'), same(null)].map(column('event')),
  ...[same(-1), same(-2_147_483_648), same(null)].map(column('groupid')),
  ...[
    ['NULL', null],
    ['empty', ''],
    ['a blank', ' '],
    ['with a blank', 'worker 1'],
    ['a blank at its end', 'worker-1 '],
    ['with a tab', 'worker\t1'],
    ['with a line feed', 'worker-1\n'],
    ['with a control character', 'worker\u00011'],
    ['256 bytes', 'w'.repeat(256)],
    ['86 characters of 3 bytes', '€'.repeat(86)],
  ].map(([label, value]) => column('nodename')([label ?? '', value])),
  ...[same(0), same(-1), same(65_536), same(null)].map(column('nodeport', false)),
  ...[same('0'), same('-1s'), same('1 day 1 us'), same('1 month')].map(column('timeout', false)),
  ...[same('-1ms'), same('1 day 1 us')].map(column('cooldown', false)),
  ...[same('reads'), same('')].map(column('pause')),
  ...[same('heartbeat'), same(''), same(null)].map(column('source')),
  ...[same('done'), same('holding'), same('nonsense'), same(null)].map(column('status')),
  ...[
    ['no port', ['worker-2']],
    ['no host', [':5432']],
    ['empty', ['']],
    ['NULL', [null]],
    ['not a number', ['worker-2:port']],
    ['a number too long', ['worker-2:123456']],
    ['IPv6 without brackets', ['::1:5432']],
    ['a bracket left open', ['[::1:5432']],
    ['something behind', ['worker-2:5432 ']],
    ['only the second is wrong', ['worker-2:5432', 'worker-3']],
    ['itself', ['worker-1:5432']],
    ['the same twice', ['worker-2:5432', 'worker-2:05432']],
    ['a table', [['worker-2:5432'], ['worker-3:5432']]],
  ].map(([label, value]) => column('secondaries')([String(label), value])),
  { name: 'secondaries: port 0', values: { secondaries: ['worker-2:0'] }, column: 'nodeport' },
  { name: 'secondaries: port 65536', values: { secondaries: ['w:65536'] }, column: 'nodeport' },
  { name: 'secondaries: a blank', values: { secondaries: ['w 2:5432'] }, column: 'nodename' },
  {
    name: 'secondaries: 256 bytes',
    values: { secondaries: [`${'w'.repeat(256)}:5432`] },
    column: 'nodename',
  },
];

const ACCEPTED: readonly { name: string; values: TaskValues; stored?: Record<string, unknown> }[] =
  [
    {
      name: 'the defaults',
      values: {},
      stored: {
        nodeport: 5432,
        secondaries: null,
        timeout: 30,
        cooldown: 10,
        pause: null,
        source: 'client',
        status: 'pending',
        attempt: 0,
      },
    },
    { name: 'suspect lasts 10 s', values: { event: 'suspect' }, stored: { timeout: 10 } },
    {
      name: 'NULL for a duration is its default',
      values: { timeout: null, cooldown: null },
      stored: { timeout: 30, cooldown: 10 },
    },
    { name: 'the coordinator', values: { groupid: 0 }, stored: { groupid: 0 } },
    { name: 'a host of 255 bytes', values: { nodename: LONGEST_HOST } },
    { name: 'an IPv6 host', values: { nodename: '::1' }, stored: { nodename: '::1' } },
    { name: 'the least port', values: { nodeport: 1 } },
    { name: 'the greatest port', values: { nodeport: 65_535 } },
    { name: 'the longest timeout', values: { timeout: '1 day' }, stored: { timeout: 86_400 } },
    { name: 'no cooldown', values: { cooldown: '0' }, stored: { cooldown: 0 } },
    { name: 'pause all', values: { pause: 'all' }, stored: { pause: 'all' } },
    { name: 'no secondaries', values: { secondaries: [] }, stored: { secondaries: [] } },
    {
      name: 'secondaries, one by its IPv6 address, one beside the node',
      values: { secondaries: ['worker-2:5432', '[::1]:5433', 'worker-1:5433'] },
      stored: { secondaries: ['worker-2:5432', '[::1]:5433', 'worker-1:5433'] },
    },
  ];

/** Quotes, comments and placeholders of every kind, without blanks. */
const HOSTILE = `x');DROP/**/TABLE/**/mpp_tasks;--$1%s%I"'\\`;

describe.each(SCHEMAS)('what is reported, in schema $schema', ({ schema, database }) => {
  let server: ContractServer;
  let contract: ContractDatabase;
  let db: Client;

  beforeAll(async () => {
    server = await ContractServer.start(inject('template'));
    contract = await server.database(database, schema);
    db = contract.db;
  });
  afterAll(async () => server.stop());

  async function traces(): Promise<number> {
    const { rows } = await db.query<{ count: number }>(
      'SELECT ((SELECT count(*) FROM mpp_tasks) + (SELECT count(*) FROM mpp_task_log))::integer AS count',
    );
    return rows[0]?.count ?? -1;
  }

  describe.each(WAYS)('by $way', ({ knows, statement }) => {
    const asked = REFUSED.filter(({ values }) =>
      ['source', 'status'].every((name) => !(name in values) || knows.some((n) => n === name)),
    );

    it.each(asked)('refuses $name', async ({ values, column, hint }) => {
      const before = await traces();
      const error = await refusal(db, statement({ ...FINE, ...values }));
      expect(error).toMatchObject({ code: '22023', column });
      expect(error.message.length).toBeGreaterThan(15);
      if (hint) expect(error.hint).toMatch(/\.$/);
      expect(await traces()).toBe(before);
    });
  });

  it.each(ACCEPTED)('takes $name', async ({ values, stored = {} }) => {
    const id = await contract.report({ ...FINE, ...values });
    const { rows } = await db.query(
      `SELECT *, extract(epoch FROM timeout)::float8 AS timeout,
              extract(epoch FROM cooldown)::float8 AS cooldown
       FROM mpp_tasks WHERE id = $1`,
      [id],
    );
    expect(rows).toEqual([expect.objectContaining(stored)]);
  });

  it('takes a report through mpp_submit by position, as psql users write it', async () => {
    const { rows } = await db.query<{ id: string }>(
      "SELECT mpp_submit('after_promote', 3, 'worker-3', 5433, ARRAY['worker-4:5432']) AS id",
    );
    const found = await db.query('SELECT * FROM mpp_tasks WHERE id = $1', [rows[0]?.id]);
    expect(found.rows).toEqual([
      expect.objectContaining({
        event: 'after_promote',
        groupid: 3,
        nodename: 'worker-3',
        nodeport: 5433,
        secondaries: ['worker-4:5432'],
        created_by: 'postgres',
      }),
    ]);
  });

  it('takes several rows in one statement, and none when one of them is refused', async () => {
    const before = await traces();
    const text = `INSERT INTO mpp_tasks (event, groupid, nodename)
                  VALUES ('suspect', 4, 'worker-4'), ('suspect', 5, $1)`;
    expect((await refusal(db, { text, parameters: [''] })).code).toBe('22023');
    expect(await traces()).toBe(before);
    await db.query(text, ['worker-5']);
    expect(await traces()).toBe(before + 4);
  });

  it('refuses hostile text in every column, and quotes it in the answer', async () => {
    for (const name of ['event', 'pause', 'source', 'status', 'nodename']) {
      const wrong = { ...FINE, [name]: HOSTILE };
      const error = await refusal(db, insertStatement(wrong));
      expect(error).toMatchObject({ code: '22023', column: name });
      expect(error.message).toContain('DROP/**/TABLE');
    }
    const wrong = { ...FINE, secondaries: [`${HOSTILE}:5432`] };
    expect(await refusal(db, insertStatement(wrong))).toMatchObject({ code: '22023' });
  });
});
