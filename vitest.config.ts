import { defineConfig } from 'vitest/config';

/** Of tests that start servers. */
const WITH_SERVERS = {
  globalSetup: ['test/kit/global-setup.ts'],
  // Bounds for what hangs; a machine that is busy besides may take several times as long as ours.
  testTimeout: 180_000,
  hookTimeout: 180_000,
  // The files share no server, and what they import has no state.
  isolate: false,
};

export default defineConfig({
  test: {
    reporters: ['default', './test/kit/closing-line.ts'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/unit/**/*.test.ts'],
          isolate: false,
          pool: 'threads',
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: 'contract',
          include: ['test/contract/**/*.test.ts'],
          ...WITH_SERVERS,
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          name: 'cluster',
          include: ['test/cluster/**/*.test.ts'],
          ...WITH_SERVERS,
          // Each file starts real PostgreSQL servers; two at a time fit two cores.
          maxWorkers: 2,
          sequence: { groupOrder: 2 },
        },
      },
      {
        test: {
          name: 'long',
          include: ['test/long/**/*.test.ts'],
          ...WITH_SERVERS,
          maxWorkers: 2,
          sequence: { groupOrder: 3 },
        },
      },
      {
        test: {
          // Client programs that are not part of this repository, through planned switchovers.
          name: 'clients',
          include: ['test/clients/**/*.test.ts'],
          ...WITH_SERVERS,
          // Each file starts servers and several client processes: one at a time.
          maxWorkers: 1,
          sequence: { groupOrder: 4 },
        },
      },
    ],
  },
});
