import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../src/errors.js';
import { createMPP } from '../../src/mpp/index.js';

describe('createMPP', () => {
  it.each(['public', 'mpp', 'Citus', 'citus_tasks'])('takes the schema %s', (schema) => {
    expect(createMPP({ schema, strategy: 'auto' }).name).toBe('citus');
  });

  it.each(['citus', 'citus_internal', 'columnar', 'columnar_internal'])(
    'refuses %s, a schema of Citus itself, with the setting and what to give',
    (schema) => {
      const create = () => createMPP({ schema, strategy: 'auto' });
      expect(create).toThrow(ConfigError);
      expect(create).toThrow(/^MPP_SCHEMA cannot be "\w+", .+; give another schema/);
    },
  );
});
