import pg from 'pg';
import { onServer, type Check } from '../finding.js';
import { TRIGGERS } from '../triggers.js';

/** Each with the code that `checkMigrated` throws. */
const STATES = [
  {
    id: 'schema-missing',
    code: 'SCHEMA_MISSING',
    ok: 'The control table is there.',
    expected: 'the control table',
    fix: 'mpp-controller migrate',
  },
  {
    id: 'schema-older',
    code: 'SCHEMA_OLDER',
    ok: 'No migration is missing.',
    expected: 'every migration of this version',
    fix: 'mpp-controller migrate',
  },
  {
    id: 'schema-newer',
    code: 'SCHEMA_NEWER',
    ok: 'No newer version has migrated the schema.',
    expected: 'no migration of a newer version',
    fix: '# install the version of mpp-controller that has migrated the schema, or a newer one',
  },
] as const;

const STATE_CHECKS = STATES.map(({ id, code, ok, expected, fix }): Check => ({
  id,
  ok,
  problems: ({ schema, target }) => {
    if (schema === null) return null;
    if (schema.code !== code) return [];
    return [
      {
        level: 'error',
        sentence: `The control table in schema ${target.schema} is not the one of this version.`,
        expected,
        actual: schema.reason,
        fix: [fix],
        node: target.node,
      },
    ];
  },
}));

/** ENABLE ALWAYS fires as well; a trigger for replicas alone does not fire in sessions of clients. */
const FIRES = new Set(['O', 'A']);

export const SCHEMA_CHECKS: readonly Check[] = [
  ...STATE_CHECKS,
  {
    id: 'schema-open',
    ok: 'Not every role may create objects in the schema.',
    problems: ({ schema, target }) =>
      schema === null
        ? null
        : schema.isOpen
          ? [
              {
                level: 'error',
                sentence:
                  'Every role may create objects in the schema, and could run them with the rights of its owner.',
                expected: `no right to create in schema ${target.schema} for PUBLIC`,
                actual: 'PUBLIC has it',
                fix: onServer(
                  target.node,
                  `REVOKE CREATE ON SCHEMA ${pg.escapeIdentifier(target.schema)} FROM PUBLIC`,
                ),
                node: target.node,
              },
            ]
          : [],
  },
  {
    id: 'trigger-missing',
    ok: 'No trigger of the control table is missing.',
    problems: ({ triggers, target }) =>
      triggers
        ?.filter(({ enabled }) => enabled === null)
        .map(({ table, name }) => ({
          level: 'error',
          sentence: `The trigger ${name} on ${table} is missing: reports are not checked or logged as they must be.`,
          expected: 'a trigger that fires',
          actual: 'no such trigger',
          fix: onServer(target.node, definitionOf(table, name, target.schema)),
          node: target.node,
        })) ?? null,
  },
  {
    id: 'trigger-disabled',
    ok: 'No trigger of the control table is disabled.',
    problems: ({ triggers, target }) =>
      triggers
        ?.filter(({ enabled }) => enabled !== null && !FIRES.has(enabled))
        .map(({ table, name, enabled }) => ({
          level: 'error',
          sentence: `The trigger ${name} on ${table} is disabled: reports are not checked or logged as they must be.`,
          expected: 'a trigger that fires',
          actual: enabled === 'R' ? 'it fires on replicas alone' : 'disabled',
          fix: onServer(
            target.node,
            `ALTER TABLE ${pg.escapeIdentifier(target.schema)}.${table} ENABLE TRIGGER ${name}`,
          ),
          node: target.node,
        })) ?? null,
  },
];

function definitionOf(table: string, name: string, schema: string): string {
  const wanted = TRIGGERS.find((one) => one.table === table && one.name === name);
  return wanted?.definition.replaceAll('@mpp.', `${pg.escapeIdentifier(schema)}.`) ?? '';
}
