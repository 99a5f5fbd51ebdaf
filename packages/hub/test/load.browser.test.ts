import { init } from '../../backend/src/index.ts';
import { ConfigError, memory, tensor2d } from '@niwaki/tensor';
import { forward, initializeModel, type Model } from '@niwaki/nn';
import { beforeAll, expect, test } from 'vitest';
import { createTokenizer, load, memoryFolderSink, saveModel, type Source } from '../src/index.ts';

const config = {
  model_type: 'llama',
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: true,
};
const tokenizer = createTokenizer({
  tokenizer: {
    added_tokens: [{ id: 5, content: '<|end|>', special: true }],
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', vocab: { a: 0, b: 1, Ġ: 2, ab: 3 }, merges: ['a b'] },
  },
});

beforeAll(() => init({ device: 'cpu' }));

async function logitsOf(model: Model): Promise<number[]> {
  const tokenIds = tensor2d([[1, 2, 3, 31]], undefined, 'int32');
  const logits = forward(model, { tokenIds });
  const values = [...(await logits.data())];
  logits.dispose();
  tokenIds.dispose();
  return values;
}

test('a model saved to the private file system of a page loads from its Files and its Blobs', async () => {
  const before = memory().numTensors;
  const model = await initializeModel(config, { seed: 7 });
  const expected = await logitsOf(model);
  const root = await navigator.storage.getDirectory();
  const directory = await root.getDirectoryHandle('niwaki-test', { create: true });
  await saveModel(model, directory, { tokenizer });
  const inMemory = memoryFolderSink();
  await saveModel(model, inMemory);
  model.dispose();

  const names = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'];
  const files = await Promise.all(names.map(async (name) => (await directory.getFileHandle(name)).getFile()));
  const alone = new Blob([inMemory.files.get('model.safetensors') as BlobPart]);
  const sources: [Source, object?][] = [[files], [alone, { config }]];
  for (const [source, options] of sources) {
    const loaded = await load(source, options);
    expect(await logitsOf(loaded.model)).toEqual(expected);
    expect(loaded.tokenizer?.encode('ab ab<|end|>', { allowSpecial: true })).toEqual(source === files ? [3, 2, 3, 5] : undefined);
    loaded.model.dispose();
  }
  await root.removeEntry('niwaki-test', { recursive: true });
  expect(memory().numTensors).toBe(before);
});

test('a path has no file system to be read from', async () => {
  await expect(load('./model.gguf')).rejects.toThrow(ConfigError);
});
