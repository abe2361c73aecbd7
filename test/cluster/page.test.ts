import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { Actor } from '../kit/faults/actor.js';
import { subjectOf } from '../kit/faults/subject.js';
import { Harness } from '../kit/harness.js';
import { ask } from '../kit/http.js';
import { waitFor } from '../kit/servers/index.js';
import { PortAllocator } from '../kit/servers/ports.js';

const CHROMIUM = '/usr/bin/chromium';
const hasChromium = existsSync(CHROMIUM);
if (!hasChromium) console.warn(`no test of the page in a browser: there is no ${CHROMIUM}`);

const ARGUMENTS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const ports = new PortAllocator();
let h: Harness;
let port: number;
let url: string;

beforeAll(async () => {
  port = await ports.allocate();
  url = `http://127.0.0.1:${port}/`;
  h = await Harness.start({ template: inject('template'), groups: 2, standbys: false });
  await h.startController({ MPP_TOPOLOGY: 'table', MPP_HTTP: String(port) });
});
afterAll(async () => {
  await h.stop();
  await ports.releaseAll();
});

describe('the page of a controller', () => {
  it('comes with a policy that allows no foreign file and nothing inline', async () => {
    const { status, headers, body } = await ask(port, '/');
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('text/html; charset=utf-8');
    expect(headers['content-security-policy']).toMatch(/^default-src 'none'; style-src 'self'/);
    expect(body).not.toMatch(/ style="|<style|<script>|https?:/);
    expect((await ask(port, '/page.css')).headers['content-type']).toMatch(/^text\/css/);
    expect((await ask(port, '/', { headers: { host: 'evil.example' } })).status).toBe(421);
  });
});

describe.skipIf(!hasChromium)('the page in a browser', { timeout: 120_000 }, () => {
  let browser: Browser;
  let axe: string;

  beforeAll(async () => {
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ARGUMENTS });
    axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
  }, 120_000);
  afterAll(async () => browser.close());

  async function shown(page: Page, text: string | RegExp): Promise<void> {
    await page.getByText(text).first().waitFor({ timeout: 30_000 });
  }

  it.each([
    ['light, wide', { colorScheme: 'light', viewport: { width: 1400, height: 900 } }],
    ['dark, on a phone', { colorScheme: 'dark', viewport: { width: 380, height: 800 } }],
    ['without JavaScript', { javaScriptEnabled: false, viewport: { width: 1000, height: 800 } }],
  ] as const)('can be read by all: %s', async (name, options) => {
    const subject = await subjectOf(h, 1);
    const demote = await h.request({ event: 'before_demote', groupid: 1, node: subject.node });
    expect(demote.status).toBe('holding');
    const context = await browser.newContext({ ...options, bypassCSP: true });
    try {
      const page = await context.newPage();
      await page.goto(url);
      await shown(page, 'All is well');
      await shown(page, 'SELECT mpp_release(1)');
      const width = options.viewport.width;
      if (name !== 'without JavaScript') {
        const overflow = await page.evaluate('document.documentElement.scrollWidth');
        expect(overflow).toBeLessThanOrEqual(width);
        await page.evaluate(axe);
        const { violations } = await page.evaluate<{
          violations: { id: string; nodes: unknown[] }[];
        }>('axe.run()');
        expect(violations.map(({ id }) => id)).toEqual([]);
      }
      await h.request({ event: 'after_promote', groupid: 1, node: subject.next });
    } finally {
      await context.close();
    }
  });

  it('renews itself, names a blocking session, and dims when the controller has gone', async () => {
    const subject = await subjectOf(h, 2);
    const context = await browser.newContext();
    const own = await ports.allocate();
    const idle = await Actor.connect(h.cluster.coordinator);
    const controller = h.spawnController({ MPP_TOPOLOGY: 'table', MPP_HTTP: String(own) });
    try {
      const page = await context.newPage();
      const failures: string[] = [];
      page.on('pageerror', (error) => failures.push(error.message));
      page.on('console', (line) => {
        if (/Content Security Policy/.test(line.text())) failures.push(line.text());
      });
      await waitFor('it to listen', async () => (await ask(own, '/livez')).status === 200);
      await page.goto(`http://localhost:${own}/`);
      await idle.begin('UPDATE items SET v = v + 1 WHERE id = $1', [subject.key]);
      const id = await h.report({
        ...{ event: 'before_demote', groupid: 2, node: subject.node, cooldown: '20s' },
      });
      await shown(page, new RegExp(`pid ${idle.pid} `));
      await idle.query('ROLLBACK');
      expect((await h.acknowledged(id)).status).toBe('holding');
      await shown(page, 'SELECT mpp_release(2)');
      await h.request({ event: 'after_promote', groupid: 2, node: subject.next });
      await page.locator('svg[role=img]').first().waitFor();
      await controller.end();
      await shown(page, 'The controller does not answer: this is what it said last.');
      expect(await page.evaluate('document.body.className')).toBe('lost');
      expect(failures).toEqual([]);
    } finally {
      await idle.end();
      await context.close();
    }
  });
});
