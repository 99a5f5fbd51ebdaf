/** Tokens one at a time after a prompt, a whole process: { tokensPerSecond, peakRssBytes, … }. */
import { generate, init } from '../../packages/niwaki/dist/index.js';
import { activationModes } from '../../packages/tensor/dist/index.js';
import { counts, oneOf } from './flags.mjs';
import { bases, devices, ids, median, smollm2 } from './smollm2.mjs';

export const options = {
  /** Of the prompt. */
  length: { type: 'string', default: '16' },
  /** New tokens that count. */
  steps: { type: 'string', default: '64' },
  threads: { type: 'string', default: '2' },
  device: { type: 'string', default: 'wasm' },
  base: { type: 'string', default: 'q4_1' },
  activations: { type: 'string', default: 'exact' },
};

export async function run(values) {
  const [length, steps, threads] = counts(values, ['length', 'steps', 'threads']);
  oneOf(values, 'device', devices);
  oneOf(values, 'base', bases);
  oneOf(values, 'activations', activationModes);
  const { description } = await init({ device: values.device, threads, software: true });
  const model = await smollm2(values.base);
  const seconds = [];
  let started = performance.now();
  let promptSeconds = 0;
  const warm = 4;
  for await (const { index } of generate(model, ids(length), {
    maxNewTokens: steps + warm,
    stopIds: [],
    activations: values.activations,
  })) {
    const now = performance.now();
    if (index === 0) promptSeconds = (now - started) / 1000;
    if (index >= warm) seconds.push((now - started) / 1000);
    started = now;
  }
  return {
    job: 'decode',
    device: description,
    base: values.base,
    activations: values.activations,
    length,
    tokensPerSecond: 1 / median(seconds),
    bestTokensPerSecond: 1 / Math.min(...seconds),
    promptSeconds,
    peakRssBytes: process.resourceUsage().maxRSS * 1024,
  };
}
