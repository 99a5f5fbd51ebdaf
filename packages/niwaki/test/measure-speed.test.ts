import { AbortError, ConfigError, memory } from '@niwaki/tensor';
import { expect, it } from 'vitest';
import { measureSpeed, type SpeedRow } from 'niwaki';
import { tinyLlamaConfig } from '../../testing/src/tiny-llama.ts';

const small = { side: 256, rows: 5, milliseconds: 1, config: tinyLlamaConfig, tokens: 8 };

it('measures each format with many rows and with one, rounded where it can be, and a step of LoRA', async () => {
  const before = memory().numTensors;
  const rows: SpeedRow[] = [];
  for await (const row of measureSpeed(small)) rows.push(row);
  const names = (job: string): string[] =>
    rows.filter((row) => row.job === job).map(({ format, activations }) => [format, activations].join(' ').trim());
  const formats = ['f32', 'nf4', 'int4', 'int8', 'Q4_0', 'Q4_1', 'Q8_0', 'Q4_K', 'Q6_K'];
  expect(names('training')).toEqual(formats);
  expect(names('generation')).toEqual([
    'f32 exact',
    ...formats.slice(1).flatMap((format) => ['exact', 'int16', 'int8'].map((mode) => `${format} ${mode}`)),
  ]);
  expect(names('LoRA step')).toEqual(['nf4']);
  for (const { value } of rows) {
    expect(value).toBeGreaterThan(0);
    expect(value).toBeLessThan(1e6);
  }
  expect(memory().numTensors).toBe(before);
});

it('leaves nothing behind where it is stopped', async () => {
  const before = memory().numTensors;
  const controller = new AbortController();
  const run = async (): Promise<void> => {
    for await (const { format } of measureSpeed({ ...small, signal: controller.signal })) if (format === 'nf4') controller.abort();
  };
  await expect(run()).rejects.toThrow(AbortError);
  for await (const { job } of measureSpeed(small)) if (job === 'generation') break;
  expect(memory().numTensors).toBe(before);
});

it('refuses sizes that the formats have no blocks for', async () => {
  for (const bad of [{ side: 100 }, { side: 0 }, { rows: 0 }, { tokens: 1.5 }, { milliseconds: -1 }]) {
    await expect(measureSpeed({ ...small, ...bad }).next()).rejects.toThrow(ConfigError);
  }
});
