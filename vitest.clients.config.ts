import { defineConfig } from 'vitest/config';

/** Client programs that are not part of this repository, through planned switchovers; not in `npm test`. */
export default defineConfig({
  test: {
    name: 'clients',
    include: ['test/clients/**/*.test.ts'],
    reporters: ['default', './test/kit/closing-line.ts'],
    globalSetup: ['test/kit/global-setup.ts'],
    // Bounds for what hangs.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    // Each file starts servers and several client processes: one at a time.
    maxWorkers: 1,
  },
});
