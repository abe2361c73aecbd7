import type {} from 'vitest';
import type { TestProject } from 'vitest/node';
import { TestBed } from './servers/test-bed.js';
import type { Template } from './servers/template.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** What test files start servers from: `startCluster({ template: inject('template') })`. */
    template: Template;
  }
}

/** Makes the template of all servers once per run; returns what removes it. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const testBed = await TestBed.open();
  project.provide('template', testBed.template);
  return () => testBed.close();
}
