import { ConfigError } from '../../errors.js';
import type { MPPSettings } from '../setup.js';

/** Schemas that come and go with Citus: objects of this project there would prevent DROP EXTENSION. */
const OWN_SCHEMAS: ReadonlySet<string> = new Set([
  'citus',
  'citus_internal',
  'columnar',
  'columnar_internal',
]);

/** @throws ConfigError when the control table would be put among the objects of Citus. */
export function validateConfig({ schema }: MPPSettings): void {
  if (!OWN_SCHEMAS.has(schema)) return;
  throw new ConfigError(
    `MPP_SCHEMA cannot be ${JSON.stringify(schema)}, which belongs to Citus; give another schema, such as public`,
  );
}
