/** LoRA over 4-bit blocks of a GGUF file (Dettmers et al. 2023), trained on running text. */
import { createHash } from 'node:crypto';
import { load, memoryFolderSink } from '@niwaki/hub';
import { adapterFiles, lora } from '@niwaki/lowrank';
import { adapt, deleteAdapter, loadAdapter, saveAdapter } from '@niwaki/peft';
import type { Model } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { memory, openMemoryLedger } from '@niwaki/tensor';
import { describe, expect, it } from 'vitest';
import { languageData, packSamples, parseText, tokenizeDocuments, train, type StepEvent } from '../src/index.ts';
import { baseOf, file, inMb, logSumExps, missing, runningText, tell } from './support/smollm2.ts';

const context = 256;

describe.skipIf(missing)('QLoRA on SmolLM2-135M-Instruct', () => {
  it('learns a text, leaves every byte of the base alone, holds no more from step to step, and comes back from its file', async () => {
    const ledger = openMemoryLedger();
    const { model, tokenizer } = await load(file!);
    const before = await hashes(model);
    const base = ledger.bytes();
    const { rows } = packSamples(tokenizeDocuments(parseText(runningText()), tokenizer!), { context });
    // Twice 256 tokens, three times over: what falls is the loss on the same words.
    const data = languageData(rows.slice(0, 2), { vocabularySize: model.info.vocabularySize });
    const set = await adapt(model, lora({ rank: 8, alpha: 16 }), { at: 'all-linear', seed: 1 });
    const adapter = ledger.bytes() - base;
    const loaded = memory().numTensors;

    ledger.resetPeak();
    const cpu = process.cpuUsage();
    const steps: StepEvent[] = [];
    const held: { tensors: number; bytes: number }[] = [];
    for await (const event of train(model, { data, optimizer: adamw({ learningRate: 1e-3 }), epochs: 3, clip: 1, seed: 3 })) {
      if (event.kind !== 'step') continue;
      steps.push(event);
      held.push({ tensors: memory().numTensors, bytes: ledger.bytes() });
    }
    const losses = steps.map(({ loss }) => loss);
    const seconds = process.cpuUsage(cpu).user / 1e6 / steps.length;
    const atRest = held[0]!.bytes;
    tell(
      `QLoRA, ${steps.length} steps of 1 x ${context}: losses ${losses.map((loss) => loss.toFixed(3)).join(' ')}; ${seconds.toFixed(2)} CPU s a step, ` +
        `${(context / seconds).toFixed(0)} tokens a CPU s; base ${inMb(base)}, adapter ${inMb(adapter)}, ` +
        `optimizer ${inMb(atRest - base - adapter)}, within a step +${inMb(ledger.peak() - atRest)}`,
    );
    // At rest: the base as it is packed, the adapter, two moments an entry, and nothing else.
    expect(atRest).toBe(base + 3 * adapter);
    expect(ledger.peak() - atRest).toBeLessThan(64e6);
    expect(losses[4]! + losses[5]!).toBeLessThan(losses[0]! + losses[1]! - 0.4);
    for (const each of held) expect(each).toEqual(held[0]);
    expect(memory().numTensors).toBe(loaded);
    expect(await hashes(model)).toEqual(before);

    const probe = [Array.from(rows[0]!.ids.subarray(0, 32))];
    const trained = await logSumExps(model, probe);
    const sink = memoryFolderSink();
    await saveAdapter(set, sink);
    deleteAdapter(model, set.name);
    expect(await logSumExps(model, probe)).not.toEqual(trained);
    await loadAdapter(model, sink.files, { types: adapterFiles });
    expect(await logSumExps(model, probe)).toEqual(trained);
    model.dispose();
    ledger.dispose();
  });
});

/** SHA-256 of every stored part of the base, by path. */
async function hashes(model: Model): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const parameter of baseOf(model)) {
    const { bytes } = await parameter.raw();
    found.set(parameter.path, createHash('sha256').update(bytes).digest('hex'));
  }
  return found;
}
