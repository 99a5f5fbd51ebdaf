import { expect, it } from 'vitest';
import { memoryFolderSink } from '@niwaki/hub';
import { memory } from '@niwaki/tensor';
import { awq, disposeBatch, filesFolder, initializeModel, load, quantize, saveQuantized, tokenBatch, type Model } from '../src/index.ts';
import { logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig, calibrationSequences } from '../../testing/src/calibration-model.ts';

const rows = calibrationSequences(3, 16);

const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, rows);

it('a model with folded factors is saved in the layout of AutoAWQ, norms included, and computes the same when it is loaded', async () => {
  const before = memory().numTensors;
  const model = await initializeModel(calibrationConfig, { seed: 1, trainable: false });
  const batches = rows.map((row) => tokenBatch([row], { vocabularySize: 40 }));
  await quantize(model, awq({ groupSize: 32, fold: true }), { calibrate: { batches } });
  batches.forEach(disposeBatch);
  const expected = await logitsOf(model);
  const sink = memoryFolderSink();
  await saveQuantized(model, sink);
  model.dispose();
  const config = JSON.parse(new TextDecoder().decode(sink.files.get('config.json'))) as Record<string, unknown>;
  expect(config['quantization_config']).toMatchObject({ quant_method: 'awq', bits: 4, group_size: 32, version: 'gemm' });
  const { model: again } = await load(filesFolder(sink.files));
  expect(await logitsOf(again)).toEqual(expected);
  again.dispose();
  expect(memory().numTensors).toBe(before);
});
