import { readFile, readdir, stat } from 'node:fs/promises';
import { memory } from '@niwaki/tensor';
import { recipeKit } from 'niwaki';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { call } from './support/call.ts';
import { tinyFolder, type TinyFolder } from './support/tiny-folder.ts';

let folder: TinyFolder;
let model: string;
let text: string;
beforeAll(async () => {
  folder = await tinyFolder();
  model = folder.at('model');
  text = await folder.write('text.txt', 'The gardener trims the pine. The pine grows slowly.');
  await folder.write('latin1.txt', Uint8Array.of(0x64, 0xe9, 0x6a));
});
afterAll(() => folder.remove());

const cpu = ['--device', 'cpu'];
const readJson = async <T>(path: string): Promise<T> => JSON.parse(await readFile(path, 'utf8')) as T;
const linesOf = async (path: string): Promise<Record<string, unknown>[]> =>
  (await readFile(path, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe('eval', () => {
  it('gives tokens, nll, perplexity and bits per byte as one object', async () => {
    const before = memory().numTensors;
    const answer = await call(['eval', '--model', model, '--text', text, '--context', '16', '--json', ...cpu]);
    expect(answer.code).toBe(0);
    const { tokens, nll, perplexity, bitsPerByte } = answer.json() as Record<string, number>;
    expect(Object.keys(answer.json())).toEqual(['tokens', 'nll', 'perplexity', 'bitsPerByte']);
    // 51 bytes in windows of 16: 16 + 16 + 16 + 3, the first of each is not predicted.
    expect(tokens).toBe(47);
    expect(perplexity).toBeCloseTo(Math.exp(nll!), 6);
    expect(bitsPerByte).toBeCloseTo(nll! / Math.LN2, 6);
    expect(answer.err).toMatch(/device: cpu/);
    expect(memory().numTensors).toBe(before);
  });

  it('takes the first tokens only, and puts an adapter and a quantizer to use', async () => {
    const plain = (await call(['eval', '--model', model, '--text', text, '--max-tokens', '20', '--json', ...cpu])).json();
    expect(plain['tokens']).toBe(19);
    const quantized = (
      await call(['eval', '--model', model, '--text', text, '--max-tokens', '20', '--quantize', 'nf4', '--json', ...cpu])
    ).json();
    expect(quantized['tokens']).toBe(19);
    expect(quantized['nll']).not.toBe(plain['nll']);
  });

  it('tells people the same in words', async () => {
    const answer = await call(['eval', '--model', model, '--text', text, ...cpu]);
    expect(answer.out).toMatch(/50 tokens predicted[^]*perplexity/);
  });
});

describe('generate', () => {
  it('continues a prompt, the same each time at temperature 0', async () => {
    const args = ['generate', '--model', model, '--prompt', 'The ', '--max-new-tokens', '6', '--temperature', '0', '--json', ...cpu];
    const answer = await call(args);
    const { promptIds, ids, text: made } = answer.json() as { promptIds: number[]; ids: number[]; text: string };
    expect(Object.keys(answer.json())).toEqual(['promptIds', 'ids', 'text']);
    expect(promptIds).toEqual([...Buffer.from('The ')]);
    expect(ids.length).toBeGreaterThan(0);
    expect(ids.length).toBeLessThanOrEqual(6);
    expect(typeof made).toBe('string');
    expect((await call(args)).out).toBe(answer.out);
  });

  it('answers a chat from the ids of the template', async () => {
    const answer = await call(['generate', '--model', model, '--chat', 'hi', '--max-new-tokens', '2', '--json', ...cpu]);
    expect((answer.json()['promptIds'] as number[]).slice(0, 6)).toEqual([256, ...Buffer.from('user\n')]);
  });

  it('wants a prompt or a chat, not both', async () => {
    expect((await call(['generate', '--model', model, ...cpu])).code).toBe(2);
    expect((await call(['generate', '--model', model, '--prompt', 'a', '--chat', 'b', ...cpu])).code).toBe(2);
  });
});

describe('inspect', () => {
  it('lists what is stored, each once', async () => {
    const { family, parameters, bytes, modules } = (await call(['inspect', '--model', model, '--json', ...cpu])).json() as {
      family: string;
      parameters: number;
      bytes: number;
      modules: { path: string; format: string; shape: number[]; bytes: number }[];
    };
    expect(family).toBe('llama');
    // 259·16 tied embedding, 2 layers of 16·16·2 + 16·8·2 + 3·16·32 + 2·16, a norm of 16.
    expect(parameters).toBe(259 * 16 + 2 * (512 + 256 + 1536 + 32) + 16);
    expect(bytes).toBe(4 * parameters);
    expect(modules.find(({ path }) => path === 'model.layers.1.mlp.up_proj')).toEqual({
      path: 'model.layers.1.mlp.up_proj',
      format: 'f32',
      shape: [32, 16],
      bytes: 2048,
    });
    expect(new Set(modules.map(({ path }) => path)).size).toBe(modules.length);
  });

  it('shows quantized matrices with their format, and a table without --json', async () => {
    const answer = await call(['inspect', '--model', model, '--quantize', 'nf4', ...cpu]);
    expect(answer.out).toMatch(/^llama, [\d,]+ parameters/);
    expect(answer.out).toMatch(/model\.layers\.0\.self_attn\.q_proj +nf4 +16×16 +/);
  });
});

describe('finetune', () => {
  it('writes an adapter, a line a step and the recipe; what it wrote is used by the others', async () => {
    const out = folder.at('run');
    const data = await folder.write(
      'chats.jsonl',
      `${JSON.stringify({
        messages: [
          { role: 'user', content: 'hi' },
          { role: 'assistant', content: 'yo' },
        ],
      })}\n`.repeat(3),
    );
    const flags = [
      '--rank',
      '2',
      '--alpha',
      '4',
      '--learning-rate',
      '0.05',
      '--batch-size',
      '2',
      '--epochs',
      '4',
      '--context',
      '48',
      '--at',
      'q_proj,v_proj',
      '--seed',
      '3',
      '--no-pack',
    ];
    const answer = await call(['finetune', '--model', model, '--data', data, ...flags, '--out', out, '--json', ...cpu]);
    expect(answer.err).toMatch(/parameters train; 3 rows/);
    expect(answer.json()).toMatchObject({ out, steps: 8 });
    expect((await readdir(out)).sort()).toEqual([
      'adapter_config.json',
      'adapter_model.safetensors',
      'base.json',
      'checkpoints',
      'recipe.json',
      'run.jsonl',
    ]);
    const lines = await linesOf(`${out}/run.jsonl`);
    expect(lines.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    for (const name of ['loss', 'gradNorm', 'learningRate', 'tokensPerSecond'])
      expect(lines.every((line) => Number.isFinite(line[name]))).toBe(true);
    expect(Object.keys(lines[0]!['memory'] as object)).toEqual([
      'base',
      'adapter',
      'trained',
      'optimizer',
      'gradients',
      'activations',
      'peak',
      'total',
    ]);
    expect(lines.at(-1)!['loss']).toBeLessThan(lines[0]!['loss'] as number);
    expect(await readJson(`${out}/recipe.json`)).toEqual({
      model,
      data,
      pack: false,
      at: ['q_proj', 'v_proj'],
      rank: 2,
      alpha: 4,
      learningRate: 0.05,
      epochs: 4,
      batchSize: 2,
      context: 48,
      seed: 3,
      device: 'cpu',
      out,
    });
    expect(await readJson(`${out}/adapter_config.json`)).toMatchObject({ peft_type: 'LORA', r: 2, lora_alpha: 4 });

    const scored = async (more: string[]): Promise<number> =>
      (await call(['eval', '--model', model, '--text', text, ...more, '--json', ...cpu])).json()['nll'] as number;
    const [base, adapted] = [await scored([]), await scored(['--adapter', out])];
    expect(adapted).not.toBe(base);

    const merged = folder.at('merged');
    expect((await call(['merge', '--model', model, '--adapter', out, '--out', merged, '--json', ...cpu])).json()).toEqual({
      out: merged,
      sites: 4,
    });
    // f32 sums in another order.
    expect(
      Math.abs((await call(['eval', '--model', merged, '--text', text, '--json', ...cpu])).json()['nll'] as number) - adapted,
    ).toBeLessThan(1e-5);
  });

  it('runs a recipe again to the same bits, and lets flags go over it', async () => {
    const first = folder.at('first');
    const recipe = { model, data: text, rank: 2, steps: 3, context: 32, seed: 5, device: 'cpu', out: first };
    await call(['finetune', '--recipe', await folder.write('recipe.json', JSON.stringify(recipe)), '--json']);
    const second = folder.at('second');
    await call(['finetune', '--recipe', `${first}/recipe.json`, '--out', second, '--json']);
    expect(await readFile(`${second}/adapter_model.safetensors`)).toEqual(await readFile(`${first}/adapter_model.safetensors`));
    const third = folder.at('third');
    expect((await call(['finetune', '--recipe', `${first}/recipe.json`, '--steps', '2', '--out', third, '--json'])).json()).toMatchObject({
      steps: 2,
    });
  });

  it('takes exact batches in their order, from a saved adapter', async () => {
    const out = folder.at('exact');
    const batches = await folder.write(
      'batches.json',
      JSON.stringify([
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
        [[7, 8, 9, 10]],
      ]),
    );
    const answer = await call([
      'finetune',
      '--model',
      model,
      '--batches',
      batches,
      '--init-adapter',
      folder.at('run'),
      '--clip',
      '0',
      '--out',
      out,
      '--json',
      ...cpu,
    ]);
    expect(answer.err).toMatch(/parameters train/);
    expect((await linesOf(`${out}/run.jsonl`)).map(({ targets }) => targets)).toEqual([4, 3]);
    expect(await readJson(`${out}/adapter_config.json`)).toMatchObject({ r: 2, lora_alpha: 4 });
  });

  it('stops at Ctrl-C with a checkpoint, and --resume goes on as if it had not', async () => {
    const args = (out: string): string[] => [
      'finetune',
      '--model',
      model,
      '--data',
      text,
      '--context',
      '8',
      '--rank',
      '2',
      '--dropout',
      '0.1',
      '--epochs',
      '3',
      '--schedule',
      'cosine',
      '--warmup',
      '2',
      '--out',
      out,
      '--json',
      ...cpu,
    ];
    const whole = folder.at('whole');
    await call(args(whole));
    const stopped = folder.at('stopped');
    const controller = new AbortController();
    const running = call(args(stopped), { signal: controller.signal });
    const poll = setInterval(() => {
      void readFile(`${stopped}/run.jsonl`, 'utf8').then(
        (lines) => lines.split('\n').length > 4 && controller.abort(),
        () => undefined,
      );
    }, 5);
    const interrupted = await running;
    clearInterval(poll);
    expect(interrupted.code).toBe(1);
    expect(interrupted.json()).toMatchObject({ error: { name: 'AbortError', help: expect.stringContaining('--resume') as unknown } });
    expect(interrupted.err).toMatch(/stopped holds the checkpoint of step \d+/);
    expect(await readdir(stopped)).not.toContain('adapter_model.safetensors');
    // Anew into an unfinished run is refused; --resume finishes it.
    const anew = await call(args(stopped));
    expect(anew.code).toBe(1);
    expect(anew.err).toMatch(/holds a run that stopped at step/);
    // So is another run, and the recipe stays that of the run which is there.
    const recipe = await readFile(`${stopped}/recipe.json`, 'utf8');
    const other = await call([...args(stopped), '--resume', '--learning-rate', '0.5']);
    expect(other.err).toMatch(/belongs to another run: schedule.learningRate/);
    expect(await readFile(`${stopped}/recipe.json`, 'utf8')).toBe(recipe);
    expect((await call([...args(stopped), '--resume'])).code).toBe(0);
    expect(await readFile(`${stopped}/adapter_model.safetensors`)).toEqual(await readFile(`${whole}/adapter_model.safetensors`));
    const essence = (lines: Record<string, unknown>[]): unknown[] =>
      lines.map(({ step, loss, gradNorm, learningRate }) => ({ step, loss, gradNorm, learningRate }));
    expect(essence(await linesOf(`${stopped}/run.jsonl`))).toEqual(essence(await linesOf(`${whole}/run.jsonl`)));
    // Finished: nothing is left to do.
    expect((await call([...args(stopped), '--resume'])).code).toBe(0);
  });

  it('says that there was nothing to resume, and how many steps changed nothing', async () => {
    const args = ['finetune', '--model', model, '--data', text, '--context', '16', '--steps', '2', '--json', ...cpu];
    const answer = await call([...args, '--learning-rate', '1e30', '--out', folder.at('wild'), '--resume']);
    expect(answer.code).toBe(0);
    expect(answer.json()).toMatchObject({ steps: 2, loss: 'NaN', refused: 1 });
    expect(answer.err).toMatch(/wild holds no checkpoint, so the run began at its first step/);
    expect(answer.err).toMatch(/1 of 2 steps changed nothing[^]*Lower --learning-rate/);
  });

  it.each([['finetune', '--data', 'text'], ['quantize'], ['prune', '--prune', 'magnitude'], ['merge', '--adapter', 'text']])(
    '%s refuses a folder for its results that is a file, before it loads a model',
    async (command, ...more) => {
      const given = more.map((word) => (word === 'text' ? text : word));
      const answer = await call([command, '--model', model, ...given, '--out', `${text}/inside`, ...cpu]);
      expect(answer.code).toBe(2);
      expect(answer.err).toBe(`niwaki: --out: '${text}' is a file, and the results take a folder\n  help: Name another folder.\n`);
    },
  );

  it('asks for the model by the name of its flag', async () => {
    const answer = await call(['finetune', '--data', text, '--out', folder.at('x')]);
    expect(answer.code).toBe(2);
    expect(answer.err).toMatch(/finetune: give --model/);
  });

  it('trains the whole model where no adapter is wanted', async () => {
    const out = folder.at('full');
    const answer = await call([
      'finetune',
      '--model',
      model,
      '--data',
      text,
      '--context',
      '16',
      '--adapt',
      'none',
      '--steps',
      '2',
      '--out',
      out,
      '--json',
      ...cpu,
    ]);
    expect(answer.code).toBe(0);
    expect((await stat(`${out}/model/model.safetensors`)).size).toBeGreaterThan(4 * 8000);
    expect((await call(['eval', '--model', `${out}/model`, '--text', text, '--json', ...cpu])).code).toBe(0);
  });

  it('trains an adapter on a quantized model', async () => {
    const out = folder.at('qlora');
    const answer = await call([
      'finetune',
      '--model',
      model,
      '--data',
      text,
      '--context',
      '16',
      '--quantize',
      'nf4',
      '--steps',
      '2',
      '--out',
      out,
      '--json',
      ...cpu,
    ]);
    expect(answer.code).toBe(0);
  });
});

describe('quantize', () => {
  it('writes a folder that loads again as it was', async () => {
    const out = folder.at('nf4');
    const answer = await call(['quantize', '--model', model, '--quantize', 'nf4', '--out', out, '--json', ...cpu]);
    const { before, after } = answer.json() as { before: number; after: number };
    expect(after).toBeLessThan(before);
    expect(await readJson(`${out}/config.json`)).toMatchObject({ quantization_config: { bnb_4bit_quant_type: 'nf4' } });
    const nll = async (args: string[]): Promise<unknown> => (await call(['eval', '--text', text, '--json', ...cpu, ...args])).json()['nll'];
    expect(await nll(['--model', out])).toBe(await nll(['--model', model, '--quantize', 'nf4']));
    const { modules } = (await call(['inspect', '--model', out, '--json', ...cpu])).json() as {
      modules: { path: string; format: string }[];
    };
    expect(modules.find(({ path }) => path === 'model.layers.0.mlp.down_proj')!.format).toBe('nf4');
  });
});

describe('quantize --no-double-quant', () => {
  it('keeps the scales as they are', async () => {
    const outs = [[], ['--no-double-quant']].map((more, i) => ({ out: folder.at(`scales-${i}`), more }));
    const nested = await Promise.all(
      outs.map(async ({ out, more }) => {
        expect((await call(['quantize', '--model', model, '--out', out, ...more, ...cpu])).code).toBe(0);
        return (await readJson<{ quantization_config: object }>(`${out}/config.json`)).quantization_config;
      }),
    );
    expect(nested).toMatchObject([{ bnb_4bit_use_double_quant: true }, { bnb_4bit_use_double_quant: false }]);
  });
});

describe('wrong usage ends with 2, failures with 1, and stdout stays one object', () => {
  it.each<[string, number, (at: TinyFolder['at']) => string[], RegExp]>([
    ['no command', 2, () => [], /--help lists the flags/],
    ['an unknown command', 2, () => ['finetun'], /Did you mean finetune/],
    ['an unknown flag', 2, (at) => ['eval', '--model', at('model'), '--text', at('text.txt'), '--contxt', '3'], /Did you mean --context/],
    ['a missing flag', 2, (at) => ['eval', '--text', at('text.txt')], /--model/],
    ['a count that is none', 2, (at) => ['eval', '--model', at('model'), '--text', at('text.txt'), '--context', 'many'], /whole number/],
    ['a device that is none', 2, (at) => ['inspect', '--model', at('model'), '--device', 'tpu'], /Allowed choices/],
    ['a stray word', 2, (at) => ['inspect', '--model', at('model'), 'more'], /too many arguments/],
    ['a quantizer that is none', 2, (at) => ['inspect', '--model', at('model'), '--quantize', 'nf5', ...cpu], /Did you mean 'nf4'/],
    ['finetune without data', 2, (at) => ['finetune', '--model', at('model'), '--out', at('x')], /--data or --batches/],
    ['finetune without a model', 2, (at) => ['finetune', '--data', at('text.txt'), '--out', at('x')], /model/],
    ['finetune without a folder', 2, (at) => ['finetune', '--model', at('model'), '--data', at('text.txt')], /--out/],
    [
      'steps and epochs',
      2,
      (at) => ['finetune', '--model', at('model'), '--data', at('text.txt'), '--out', at('x'), '--steps', '1', '--epochs', '1'],
      /steps or epochs/,
    ],
    [
      'a dropout of 1',
      2,
      (at) => ['finetune', '--model', at('model'), '--data', at('text.txt'), '--out', at('x'), '--dropout', '1'],
      /dropout: expected less than 1, got 1/,
    ],
    ['a model that is not there', 1, (at) => ['inspect', '--model', at('nowhere'), ...cpu], /no file or folder/],
    [
      'a text that is no UTF-8',
      1,
      (at) => ['eval', '--model', at('model'), '--text', at('latin1.txt'), ...cpu],
      /latin1\.txt is no UTF-8 text: byte 1 \(0xe9, line 1\)/,
    ],
    ['a text that is not there', 1, (at) => ['eval', '--model', at('model'), '--text', at('nowhere.txt'), ...cpu], /no file/],
    [
      'an adapter that is not there',
      1,
      (at) => ['eval', '--model', at('model'), '--text', at('text.txt'), '--adapter', at('nowhere'), ...cpu],
      /adapter_config|no file or folder/,
    ],
    [
      'a window longer than the model',
      1,
      (at) => ['eval', '--model', at('model'), '--text', at('text.txt'), '--context', '100', ...cpu],
      /from 2 to 64/,
    ],
    [
      'a site that is not there',
      1,
      (at) => ['finetune', '--model', at('model'), '--data', at('text.txt'), '--out', at('x'), '--at', 'q_prj', ...cpu],
      /q_prj/,
    ],
    [
      'a schedule that is none',
      1,
      (at) => ['finetune', '--model', at('model'), '--data', at('text.txt'), '--out', at('x'), '--schedule', 'cosin', ...cpu],
      /Did you mean 'cosine'/,
    ],
  ])('%s', async (_what, code, args, message) => {
    const before = memory().numTensors;
    const answer = await call([...args(folder.at), '--json']);
    expect(answer.code).toBe(code);
    expect(answer.err).toMatch(message);
    expect(answer.json()).toMatchObject({ error: { name: expect.any(String), message: expect.any(String) } });
    expect(memory().numTensors).toBe(before);
  });

  it.each<[unknown, RegExp]>([
    [{ rnak: 4 }, /there is no 'rnak'[^]*Did you mean 'rank'/],
    [{ rank: '4' }, /rank: .*number.*got "4"/],
    [{ rank: 0 }, /rank: expected at least 1, got 0/],
    [{ learningRate: -1 }, /learningRate: expected more than 0, got -1/],
    [{ quantize: {} }, /quantize: expected a kind/],
    [[], /expected an object/],
    ['{', /not JSON/],
  ])('a recipe with %j', async (recipe, message) => {
    const file = await folder.write('bad.json', typeof recipe === 'string' ? recipe : JSON.stringify(recipe));
    const answer = await call(['finetune', '--recipe', file, '--model', model, '--data', text, '--out', folder.at('x'), '--json']);
    expect(answer.code).toBe(2);
    expect(answer.err).toMatch(message);
    expect(answer.json()).toMatchObject({ error: { name: 'UsageError' } });
  });

  it.each<[string, RegExp]>([
    ['', /holds no document/],
    ['{"text":', /line 1: not JSON/],
    ['{"text":"fine"}\n{"txt":"x"}', /line 2: no known field/],
  ])('data of %j', async (content, message) => {
    const file = await folder.write('bad.jsonl', content);
    const answer = await call(['finetune', '--model', model, '--data', file, '--out', folder.at('x'), '--json', ...cpu]);
    expect(answer.code).toBe(1);
    expect(answer.err).toMatch(message);
    expect(answer.json()).toMatchObject({ error: { name: 'DataError' } });
  });

  it('no command at all shows how it is used', async () => {
    const answer = await call([]);
    expect(answer.code).toBe(2);
    expect(answer.err).toMatch(/Usage: niwaki/);
    expect(answer.out).toBe('');
  });

  it('help is a result', async () => {
    const answer = await call(['finetune', '--help']);
    expect(answer.code).toBe(0);
    for (const kind of Object.keys(recipeKit.optimizers)) expect(answer.out).toMatch(new RegExp(`--optimizer <kind> [^<]*\\b${kind}\\b`));
    for (const flag of [
      '--rank',
      '--alpha',
      '--dropout',
      '--at',
      '--quantize',
      '--learning-rate',
      '--weight-decay',
      '--schedule',
      '--warmup',
      '--clip',
      '--steps',
      '--epochs',
      '--batch-size',
      '--context',
      '--accumulate',
      '--seed',
      '--device',
      '--threads',
      '--out',
      '--init-adapter',
      '--batches',
      '--recipe',
      '--resume',
      '--json',
    ])
      expect(answer.out).toContain(flag);
  });
});

describe('bench', () => {
  const small = ['bench', '--device', 'wasm', '--threads', '1', '--side', '256', '--layers', '1', '--tokens', '8', '--milliseconds', '1'];

  it('gives the device, a number for each product and for training, and the memory as one object', async () => {
    const answer = await call([...small, '--json']);
    expect(answer.code).toBe(0);
    const { device, threads, rows, peakRssBytes } = answer.json() as {
      device: string;
      threads: number;
      rows: { job: string; format: string; activations?: string; value: number; unit: string }[];
      peakRssBytes: number;
    };
    expect({ device, threads }).toEqual({ device: 'wasm', threads: 1 });
    expect(rows.every(({ value }) => value > 0 && Number.isFinite(value))).toBe(true);
    expect(rows).toContainEqual(expect.objectContaining({ job: 'generation', format: 'nf4', activations: 'int8', unit: 'GFLOP/s' }));
    expect(rows.at(-1)).toMatchObject({ job: 'LoRA step', unit: 'tokens/s' });
    expect(peakRssBytes).toBeGreaterThan(2 ** 26);
  });

  it('tells people the same, a line a number', async () => {
    const answer = await call(small);
    expect(answer.out).toMatch(
      /^training +f32 +[\d.]+ GFLOP\/s\n[^]*LoRA step +nf4 +[\d.]+ tokens\/s\npeak memory of the process +[\d.]+ MiB\n$/,
    );
  });
});
