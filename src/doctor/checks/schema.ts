import type { Check } from '../finding.js';

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

export const SCHEMA_CHECKS: readonly Check[] = STATES.map(({ id, code, ok, expected, fix }) => ({
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
