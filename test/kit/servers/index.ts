/** Real PostgreSQL servers for tests, the demo and the benchmarks. */
export { resolveBinaries, type Binaries } from './binaries.js';
export { Cluster, Group, startCluster, type ClusterOptions } from './cluster.js';
export { Server, type StopMode } from './server.js';
export type { Settings } from './settings.js';
export { cloneFrom, waitUntilReplayed, waitUntilStreaming } from './standby.js';
export type { Prepare, Template } from './template.js';
export { TestBed, type TestBedOptions } from './test-bed.js';
export { waitFor, WaitTimeoutError, type WaitOptions } from './wait.js';
