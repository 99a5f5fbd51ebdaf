import { load, type Loaded } from '@niwaki/hub';
import { forward } from '@niwaki/nn';
import { argMax, log, openMemoryLedger, sum, mul, softmax, sub, tensor2d, tidy, type Tensor } from '@niwaki/tensor';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { nf4, quantize } from '../src/index.ts';
import { modelPath } from '../../testing/src/shared.ts';

const path = modelPath('smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf');
const text = 'The garden was quiet in the early morning. A small pine stood in a shallow pot, shaped by years of careful pruning.';

describe.skipIf(path === undefined)('SmolLM2-135M-Instruct quantized to nf4', () => {
  let loaded: Loaded;
  let ids: number[];
  beforeAll(async () => {
    loaded = await load(path!);
    ids = loaded.tokenizer!.encode(text);
  }, 120_000);
  afterAll(() => loaded.model.dispose());

  const probabilities = (): Tensor => tidy(() => softmax(forward(loaded.model, { tokenIds: tensor2d([ids], undefined, 'int32') })));

  it('holds 4.13 bits an entry, never holds a float copy, and says nearly the same', async () => {
    const before = probabilities();
    const ledger = openMemoryLedger();
    const start = ledger.bytes();
    const started = performance.now();
    const { sites, bytes } = await quantize(loaded.model, nf4(), { undoBytes: 0, requantize: true });
    const seconds = (performance.now() - started) / 1000;
    const peak = ledger.peak() - start;
    const entries = loaded.model.sites([...sites]).reduce((total, { weight }) => total + weight!.shape[0] * weight!.shape[1], 0);
    expect(sites).toHaveLength(210);
    expect(entries).toBe(106_168_320);
    // 4.127 bits, and 1.1 kB of tables a matrix.
    expect((bytes * 8) / entries).toBeLessThan(4.15);
    // Rows are widened about half a million at a time; a matrix of this model has up to 884,736 entries, 3.5 MB as floats.
    expect(peak).toBeLessThan(3 * 2 ** 20);
    const after = probabilities();
    const divergence = tidy(() => Array.from(sum(mul(before, sub(log(before), log(after))), -1).dataSync()));
    const agree = tidy(() => {
      const [a, b] = [before, after].map((p) => argMax(p, -1).dataSync());
      return a!.filter((id, i) => id === b![i]).length / ids.length;
    });
    const mean = divergence.reduce((total, value) => total + value, 0) / divergence.length;
    process.stderr.write(
      `nf4 over Q4_1: ${ids.length} tokens, mean KL ${mean.toFixed(4)} nats, same first choice ${(100 * agree).toFixed(0)}%, ` +
        `${(bytes / 2 ** 20).toFixed(1)} MiB, peak +${(peak / 2 ** 20).toFixed(1)} MiB, ${seconds.toFixed(1)} s\n`,
    );
    // The file is 4-bit already, and the model small: measured 0.26 nats for being rounded a second time (fp4 0.48, blocks of 256 0.46).
    expect(mean).toBeLessThan(0.35);
    expect(agree).toBeGreaterThan(0.75);
    ledger.dispose();
    before.dispose();
    after.dispose();
  });
});
