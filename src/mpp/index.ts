import type { AbstractMPP, MPPSettings } from './abstract.js';
import { createCitus } from './citus/citus.js';

/**
 * The MPP database that the settings name. There is one kind so far, Citus; nothing outside this
 * folder knows which it is.
 *
 * @throws ConfigError when the settings do not fit it.
 */
export function createMPP(settings: MPPSettings): AbstractMPP {
  const mpp = createCitus({ strategy: settings.strategy, connection: settings.connection });
  mpp.validateConfig(settings);
  return mpp;
}
