// Quantizes and tunes a language model in this worker. The page sends { steps }, and gets messages by `kind`.
import {
  adamw,
  adapt,
  cosine,
  evaluateText,
  generate,
  init,
  languageData,
  load,
  lora,
  nf4,
  packSamples,
  quantize,
  saveAdapter,
  tokenizeDocuments,
  train,
} from 'niwaki';
import { lastChapters, trainingChapters } from './moby-dick';

async function finetune({ steps, device: wanted }: { steps: number; device: 'auto' | 'wasm' | 'webgpu' }): Promise<void> {
  const device = await init({ device: wanted });
  postMessage({ kind: 'device', ...device });

  const { model, tokenizer } = await load('niwaki-tiny');
  const { bytes } = await quantize(model, nf4({ doubleQuant: true }));
  postMessage({ kind: 'quantized', bytes });

  const prompt = tokenizer!.encode('The whale');
  const text = await lastChapters();
  const judge = async (kind: string): Promise<void> => {
    const { perplexity } = await evaluateText(model, tokenizer!, text, { maxTokens: 1024 });
    const ids = [...prompt];
    for await (const { id } of generate(model, prompt, { maxNewTokens: 50, temperature: 0.8, topP: 0.95, seed: 7 })) ids.push(id);
    postMessage({ kind, perplexity, sample: tokenizer!.decode(ids, { skipSpecialTokens: true }) });
  };
  await judge('before');

  const adapter = await adapt(model, lora({ rank: 8, alpha: 16 }), { at: 'all-linear' });
  const documents = (await trainingChapters()).map((chapter) => ({ text: chapter }));
  const { rows } = packSamples(tokenizeDocuments(documents, tokenizer!), { context: 128 });
  const data = languageData(rows, { vocabularySize: model.info.vocabularySize });
  const optimizer = adamw({ learningRate: 4e-3, weightDecay: 0 });
  const schedule = cosine({ learningRate: 4e-3, warmup: 5, floor: 0.1 });
  for await (const event of train(model, { data, optimizer, schedule, steps, batchSize: 4, clip: 1 })) postMessage(event);

  await judge('after');
  const files = new Map<string, Uint8Array>();
  await saveAdapter(adapter, files);
  postMessage({ kind: 'adapter', files });
  model.dispose();
}

addEventListener('message', ({ data }) => {
  finetune(data).catch((error: Error) => postMessage({ kind: 'failed', message: error.message }));
});
