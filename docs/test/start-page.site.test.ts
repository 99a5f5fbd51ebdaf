import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { chromium, type Browser, type Page } from 'playwright';
import { preview, type PreviewServer } from 'vite';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { chromiumFlags, findChromium } from '../../scripts/chromium.mjs';

const docs = fileURLToPath(new URL('..', import.meta.url));
const port = 4179;

let server: PreviewServer;
let browser: Browser;

beforeAll(async () => {
  const built = spawnSync('npx', ['vitepress', 'build'], { cwd: docs, encoding: 'utf8' });
  if (built.status !== 0) throw new Error(`the site does not build:\n${built.stdout}${built.stderr}`);
  const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };
  server = await preview({
    configFile: false,
    root: docs,
    appType: 'mpa',
    build: { outDir: '.vitepress/dist' },
    preview: { port, headers },
  });
  browser = await chromium.launch({ executablePath: findChromium()!, args: chromiumFlags });
}, 600_000);

afterAll(async () => {
  await browser?.close();
  await server?.close();
});

async function open(path: string): Promise<Page> {
  const page = await browser.newPage();
  await page.goto(`http://localhost:${port}/${path}`);
  return page;
}

describe('the start page', () => {
  it('is isolated, so that wasm has threads', async () => {
    const page = await open('');
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(true);
    await page.close();
  });

  it('quantizes and trains in the reader’s browser, and gives the adapter away', async () => {
    const page = await open('?steps=6&device=wasm');
    await page.click('button.start');
    await page.waitForSelector('.finetune[data-state="done"], .finetune[data-state="failed"]', { timeout: 240_000 });
    expect(await page.textContent('.told')).toMatch(/wasm: .*threads.* MB/);
    expect(await page.textContent('.progress')).toMatch(/step 6 of 6/);
    const perplexity = (text: string | null): number => Number(/perplexity ([\d.]+)/.exec(text ?? '')?.[1]);
    const [before, after] = await page.$$eval('blockquote', (quotes) => quotes.map((quote) => quote.textContent));
    expect(perplexity(after!)).toBeLessThan(perplexity(before!));

    const names: string[] = [];
    page.on('download', (download) => names.push(download.suggestedFilename()));
    await page.click('button.download');
    await expect.poll(() => [...names].sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    await page.close();
  }, 300_000);

  it('shows the whole code of the example', async () => {
    const page = await open('');
    expect(await page.textContent('main')).toContain("await load('niwaki-tiny')");
    await page.close();
  });
});

describe('the page of speed', () => {
  it.each(['wasm', 'webgpu'])(
    'measures every product and a step of training on %s',
    async (device) => {
      const page = await open(`guide/bench?software&device=${device}&side=256&milliseconds=5&tokens=8&layers=1`);
      await page.click('.speed button.start');
      await page.waitForSelector('.speed[data-state="done"], .speed[data-state="failed"]', { timeout: 240_000 });
      expect(await page.textContent('.speed .told')).toContain(`${device}: `);
      const rows = await page.$$eval('.speed tbody tr', (lines) => lines.map((line) => [...line.children].map((cell) => cell.textContent)));
      expect(rows).toHaveLength(9 + 1 + 8 * 3 + 1);
      expect(rows).toContainEqual(['generation', 'Q4_1', 'int8', expect.stringMatching(/^[\d.]+ GFLOP\/s$/)]);
      expect(rows.at(-1)).toEqual(['LoRA step', 'nf4', 'exact', expect.stringMatching(/^[\d.]+ tokens\/s$/)]);
      await page.close();
    },
    300_000,
  );
});
