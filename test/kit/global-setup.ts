import type {} from 'vitest';
import type { TestProject } from 'vitest/node';
import { buildIfChanged, PROGRAM } from './build.js';
import { TestBed } from './servers/test-bed.js';
import type { Template } from './servers/template.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** What test files start servers from: `startCluster({ template: inject('template') })`. */
    template: Template;
  }
}

/** Builds the program if its sources have changed, and makes the template of all servers; returns what removes it. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  await buildIfChanged(PROGRAM);
  const testBed = await TestBed.open();
  project.provide('template', testBed.template);
  return () => testBed.close();
}
