import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { METRICS } from '../../src/http/metric-table.js';
import { packageRoot } from '../../src/package-root.js';

const MONITORING = join(packageRoot(), 'monitoring');
const read = (...path: string[]): Promise<string> => readFile(join(packageRoot(), ...path), 'utf8');

interface Alert {
  readonly name: string;
  readonly text: string;
}

async function readAlerts(): Promise<Alert[]> {
  const [, ...rules] = (await read('monitoring', 'alerts.yml')).split(/^ *- alert: /m);
  return rules.map((text) => ({ name: text.split('\n', 1)[0] ?? '', text }));
}

describe('the alert rules', () => {
  it('have each a duration, a severity, a summary and a section of the runbook', async () => {
    const alerts = await readAlerts();
    expect(alerts.length).toBeGreaterThan(10);
    for (const { name, text } of alerts) {
      expect(text, name).toMatch(/^ +for: \d+[smh]$/m);
      expect(text, name).toMatch(/^ +severity: (warning|critical)$/m);
      expect(text, name).toMatch(/^ +summary: .+\.'?$/m);
      expect(text, name).toContain(`runbook_url: docs/runbook.md#${name.toLowerCase()}\n`);
    }
  });

  it('and the sections of the runbook are the same, in the same order', async () => {
    const sections = (await read('docs', 'runbook.md')).split(/^## /m).slice(1);
    const names = sections.map((section) => section.split('\n', 1)[0]);
    expect(names).toEqual((await readAlerts()).map(({ name }) => name));
    for (const section of sections) {
      expect(section).toMatch(
        /\*\*What it means\.\*\*[^]+\*\*Look here\.\*\*[^]+\*\*Do this\.\*\*/,
      );
    }
  });

  it('name no metric that there is not, and no label that it has not', async () => {
    for (const { name, text } of await readAlerts()) {
      const expression = /^ +expr: (.+)$/m.exec(text)?.[1] ?? '';
      const selectors = [...expression.matchAll(/(mpp_\w+)(?:\{([^}]*)\})?/g)];
      expect(selectors.length, name).toBeGreaterThan(0);
      for (const [, series = '', matchers = ''] of selectors) {
        const metric = METRICS[series.replace(/_count$/, '') as keyof typeof METRICS];
        expect(metric, series).toBeDefined();
        for (const [, label, values = ''] of matchers.matchAll(/(\w+)!?=~?"([^"]*)"/g)) {
          const known = Object.entries<readonly string[] | undefined>(metric.labels);
          const allowed = known.find(([one]) => one === label)?.[1] ?? [];
          for (const value of values.split('|')) expect(allowed, series).toContain(value);
        }
      }
    }
  });

  it('are each in a test of promtool that fires, and in one that does not', async () => {
    const tests = await read('monitoring', 'alerts.test.yml');
    for (const { name } of await readAlerts()) {
      expect(tests).toMatch(new RegExp(`alertname: ${name}\\n +exp_alerts: \\[\\]`));
      expect(tests).toMatch(new RegExp(`alertname: ${name}\\n +exp_alerts:\\n`));
    }
  });

  it('pass the tests of promtool', (context) => {
    const { error, status, stdout, stderr } = spawnSync(
      'promtool',
      ['test', 'rules', 'alerts.test.yml'],
      { cwd: MONITORING, encoding: 'utf8' },
    );
    if (error !== undefined) {
      context.skip(`promtool cannot be run (Debian package prometheus): ${error.message}`);
    }
    expect(status, `${stdout}${stderr}`).toBe(0);
  });
});
