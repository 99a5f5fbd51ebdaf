import { execFile, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { saveModel } from '@niwaki/hub';
import { createDraw } from '@niwaki/tensor';
import { causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { adamw } from '@niwaki/optim';
import type { Model } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora, type LoraOptions } from '../src/index.ts';
import { adapt, saveAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { distance, logitsOf } from './golden.ts';
import { perturb, rows } from './support.ts';

/** f32 on both sides, over two layers. */
const tolerance = 1e-4;

const python = process.env['NIWAKI_PYTHON'] ?? 'python3';
const present = spawnSync(python, ['-c', 'import torch, transformers, peft'], { encoding: 'utf8' }).status === 0;
if (!present)
  process.stderr.write(
    `niwaki tests: ${python} has no torch, transformers and peft; what Python makes of our adapters is skipped (NIWAKI_PYTHON names another).\n`,
  );

interface Case {
  readonly name: string;
  readonly base: 'llama' | 'tied' | 'biased';
  readonly options: LoraOptions;
  readonly at: string[];
  readonly form?: 'native';
}

const cases: readonly Case[] = [
  { name: 'plain', base: 'llama', options: {}, at: ['q_proj', 'v_proj'] },
  { name: 'all linear', base: 'llama', options: { dropout: 0.2 }, at: ['all-linear'] },
  {
    name: 'rslora',
    base: 'llama',
    options: { rslora: true, rankPattern: { v_proj: 2 }, alphaPattern: { '^model.layers.0.self_attn.q_proj': 3 } },
    at: ['q_proj', 'v_proj'],
  },
  { name: 'dora', base: 'llama', options: { dora: true }, at: ['q_proj', 'down_proj'] },
  { name: 'pissa as a plain adapter', base: 'llama', options: { init: 'pissa' }, at: ['q_proj', 'down_proj'] },
  { name: 'olora as a plain adapter', base: 'llama', options: { init: 'olora', rslora: true }, at: ['q_proj', 'up_proj'] },
  { name: 'pissa', base: 'llama', options: { init: 'pissa', rslora: true }, at: ['q_proj', 'down_proj'], form: 'native' },
  { name: 'olora', base: 'llama', options: { init: 'olora', rankPattern: { up_proj: 2 } }, at: ['q_proj', 'up_proj'], form: 'native' },
  { name: 'embeddings', base: 'llama', options: {}, at: ['embed_tokens', 'lm_head'] },
  { name: 'dora of embeddings', base: 'llama', options: { dora: true }, at: ['embed_tokens'] },
  { name: 'whole modules', base: 'llama', options: { modulesToSave: ['lm_head', 'norm'] }, at: ['q_proj'] },
  { name: 'layers', base: 'llama', options: { layersToTransform: [1] }, at: ['q_proj', 'up_proj'] },
  { name: 'token rows', base: 'tied', options: { trainableTokens: [3, 1] }, at: ['q_proj'] },
  { name: 'bias of the pair', base: 'biased', options: { loraBias: true }, at: ['q_proj'] },
  { name: 'own biases', base: 'biased', options: { bias: 'lora_only', dora: true }, at: ['q_proj', 'o_proj'] },
  { name: 'all biases', base: 'biased', options: { bias: 'all' }, at: ['q_proj'] },
];

const configs = {
  llama: {},
  tied: { tie_word_embeddings: true },
  biased: { model_type: 'qwen2' },
};

describe.skipIf(!present)('PEFT in Python', () => {
  const results = new Map<string, { readonly logits: number[]; readonly merged: number[]; readonly missing: string[] }>();
  const ours = new Map<string, Float32Array>();
  let folder = '';

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'peft-'));
    for (const base of Object.keys(configs) as Case['base'][]) {
      const model = await tinyLlama(configs[base]);
      await saveModel(model, join(folder, base));
      model.dispose();
    }
    const jobs = [];
    for (const { name, base, options, at, form = 'portable' } of cases) {
      const model = await tinyLlama(configs[base]);
      const set = await adapt(model, lora({ rank: 4, alpha: 6, ...options }), { at });
      perturb(set, { size: 0.3 });
      await train(model);
      ours.set(name, await logitsOf(model, rows));
      await saveAdapter(set, join(folder, name), { form });
      jobs.push({ base: join(folder, base), adapter: join(folder, name), ids: rows, resave: join(folder, `${name} again`) });
      model.dispose();
    }
    await writeFile(join(folder, 'jobs.json'), JSON.stringify(jobs));
    const script = new URL('../../../interop/peft_check.py', import.meta.url).pathname;
    const { stdout } = await promisify(execFile)(python, [script, join(folder, 'jobs.json')], {
      maxBuffer: 2 ** 26,
      env: { ...process.env, HF_HUB_OFFLINE: '1' },
    });
    const found = JSON.parse(stdout) as (typeof results extends Map<string, infer R> ? R : never)[];
    cases.forEach(({ name }, i) => results.set(name, found[i]!));
  }, 600_000);

  afterAll(() => rm(folder, { recursive: true, force: true }));

  it.each(cases)('loads an adapter trained here with equal logits, active and merged: $name', ({ name }) => {
    const { logits, merged, missing } = results.get(name)!;
    expect(missing).toEqual([]);
    expect(distance(logits, ours.get(name)!)).toBeLessThan(tolerance);
    // PEFT does not merge a pair's bias into a base that has none; every case here has one.
    expect(distance(merged, ours.get(name)!)).toBeLessThan(tolerance);
  });

  it.each(cases)('writes the same tensors when it saves the adapter again, and they load here: $name', async ({ name, base }) => {
    const read = (at: string): Promise<Buffer> => readFile(join(folder, at, 'adapter_model.safetensors'));
    expect(Buffer.compare(await read(`${name} again`), await read(name))).toBe(0);
    const model = await tinyLlama(configs[base]);
    await loadAdapter(model, join(folder, `${name} again`));
    expect(distance(await logitsOf(model, rows), ours.get(name)!)).toBeLessThan(tolerance);
    model.dispose();
  });
});

/** A few steps, so that what is saved is what training leaves. */
async function train(model: Model): Promise<void> {
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 0.01 }) });
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: 32 },
  );
  for (let attempt = 0; attempt < 3; attempt++)
    await step.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(1, attempt) });
  disposeBatch(batch);
  step.dispose();
}
