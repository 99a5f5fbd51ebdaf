import { readFile, readdir, writeFile } from 'node:fs/promises';
import { memory } from '@niwaki/tensor';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli } from '../src/index.ts';
import { call } from './support/call.ts';
import { tinyFolder, type TinyFolder } from './support/tiny-folder.ts';

let folder: TinyFolder;
let model: string;
let text: string;
let others: string;
beforeAll(async () => {
  folder = await tinyFolder();
  model = folder.at('model');
  text = await folder.write('text.txt', 'The gardener trims the pine. The pine grows slowly.');
  others = await folder.write('others.txt', 'Moss covers the stones by the gate, and a lantern stands where the path turns. '.repeat(4));
});
afterAll(() => folder.remove());

const cpu = ['--device', 'cpu'];
const looking = (): string[] => ['--calibrate', others, '--calibrate-windows', '2', '--calibrate-context', '16'];
const nll = async (of: string): Promise<number> =>
  (await call(['eval', '--model', of, '--text', text, '--json', ...cpu])).json()['nll'] as number;
const formatsOf = async (of: string): Promise<{ path: string; format: string }[]> =>
  (await call(['inspect', '--model', of, '--json', ...cpu])).json()['modules'] as { path: string; format: string }[];

/** Runs a command line and stops it when it says something. */
async function stoppedAt(words: RegExp, args: readonly string[]): Promise<{ code: number; out: string }> {
  const controller = new AbortController();
  let out = '';
  const err = (line: string): void => {
    if (words.test(line)) controller.abort();
  };
  const code = await runCli(args, { out: (part) => (out += part), err, signal: controller.signal, bars: undefined });
  expect(controller.signal.aborted).toBe(true);
  return { code, out };
}

describe('quantize with text', () => {
  const blocks = /quantizing 1\/2 model\.layers\.0\n[^]*quantizing 2\/2 model\.layers\.1\n/;
  it.each([
    ['gptq', '4', 'gptq', blocks],
    ['awq', '4', 'awq', blocks],
    ['awq', '8', 'gptq', blocks],
    ['cbq', '4', 'gptq', /fitting model\.layers\.0, model\.layers\.1 10\/10 loss [^]*quantizing 1\/1 model\.layers\.1\n/],
  ])('%s with %s bits writes a folder that loads again as it was, and tells how far it is', async (kind, bits, format, progress) => {
    const before = memory().numTensors;
    const out = folder.at(`${kind}-${bits}`);
    const args = ['quantize', '--model', model, '--quantize', kind, '--bits', bits, '--group-size', '16', ...looking(), '--eval', text];
    const answer = await call([...args, '--out', out, '--json', ...cpu]);
    expect(answer.code).toBe(0);
    expect(answer.json()).toMatchObject({ out, calibration: { windows: 2, tokens: 32 } });
    const { before: floats, after, perplexity } = answer.json() as { before: number; after: number; perplexity: Record<string, number> };
    expect(after).toBeLessThan(floats);
    expect(answer.err).toContain(`calibrating ${kind} with 2 windows, 32 tokens\n`);
    expect(answer.err).toMatch(progress);
    const config = JSON.parse(await readFile(`${out}/config.json`, 'utf8')) as Record<string, unknown>;
    expect(config['quantization_config']).toMatchObject({ quant_method: format, bits: Number(bits), group_size: 16 });
    expect(Math.log(perplexity['before']!)).toBeCloseTo(await nll(model), 10);
    expect(Math.log(perplexity['after']!)).toBeCloseTo(await nll(out), 6);
    expect(perplexity['after']).not.toBe(perplexity['before']);
    expect((await formatsOf(out)).filter(({ path }) => path.endsWith('_proj'))).toHaveLength(14);
    expect(memory().numTensors).toBe(before);
  });

  it.each(['nf4', 'cbq'])('%s with rounded activations writes a folder that rounds them when it is loaded', async (kind) => {
    const before = memory().numTensors;
    const more = kind === 'cbq' ? ['--group-size', '16', ...looking()] : [];
    const out = folder.at(`${kind}-rounded`);
    const args = ['quantize', '--model', model, '--quantize', kind, ...more, '--activation-bits', '4', '--eval', text, '--out', out];
    const answer = await call([...args, '--json', ...cpu]);
    expect(answer.code).toBe(0);
    const config = JSON.parse(await readFile(`${out}/config.json`, 'utf8')) as Record<string, unknown>;
    const sites = expect.arrayContaining(['model.layers.1.mlp.down_proj']) as unknown;
    expect(config['niwaki']).toEqual({ activations: [{ sites, bits: 4, symmetric: false, per: 'token' }] });
    const { perplexity } = answer.json() as { perplexity: { after: number } };
    const rounded = await nll(out);
    expect(Math.log(perplexity.after)).toBeCloseTo(rounded, 6);
    const modules = (await call(['inspect', '--model', out, '--json', ...cpu])).json()['modules'] as { path: string; inputBits?: number }[];
    expect(modules.find(({ path }) => path === 'model.layers.1.mlp.down_proj')).toMatchObject({ inputBits: 4 });
    expect((await call(['inspect', '--model', out, ...cpu])).out).toMatch(/down_proj +\S+, input in 4 bits/);
    delete config['niwaki'];
    await writeFile(`${out}/config.json`, JSON.stringify(config));
    expect(Math.abs((await nll(out)) - rounded)).toBeGreaterThan(1e-6);
    expect(memory().numTensors).toBe(before);
  });

  it('rounds codes again where it is told to, and so do commands that read a model', async () => {
    const coded = folder.at('gptq-4');
    const twice = ['--quantize', 'nf4', '--json', ...cpu];
    const data = ['--data', text, '--context', '16', '--steps', '1'];
    for (const args of [
      ['quantize', '--model', coded, '--out', folder.at('twice'), ...twice],
      ['inspect', '--model', coded, ...twice],
      ['finetune', '--model', coded, ...data, '--out', folder.at('twice-trained'), ...twice],
    ]) {
      const refused = await call(args);
      expect(refused.code).not.toBe(0);
      expect(refused.json()).toMatchObject({ error: { name: 'ConfigError', message: expect.stringMatching(/codes[^]*q_proj/) } });
      expect((await call([...args, '--requantize'])).code).toBe(0);
    }
    expect(await formatsOf(folder.at('twice'))).toContainEqual(expect.objectContaining({ format: expect.stringContaining('nf4') }));
    const nothing = await call(['finetune', '--model', coded, ...data, '--out', folder.at('x'), '--requantize', ...cpu]);
    expect(nothing).toMatchObject({ code: 2, err: expect.stringContaining('--requantize: say by --quantize') });
  });

  it('leaves the folder as it was when it is stopped', async () => {
    const before = memory().numTensors;
    const out = folder.at('gptq-4');
    const filesOf = async (): Promise<Buffer[]> => Promise.all((await readdir(out)).sort().map((name) => readFile(`${out}/${name}`)));
    const files = await filesOf();
    const args = ['quantize', '--model', model, '--quantize', 'awq', '--group-size', '16', ...looking(), '--out', out, '--json', ...cpu];
    const { code, out: told } = await stoppedAt(/quantizing 1\/2/, args);
    expect(code).toBe(1);
    expect(JSON.parse(told)).toMatchObject({ error: { name: 'AbortError' } });
    expect(await filesOf()).toEqual(files);
    expect(memory().numTensors).toBe(before);
  });
});

describe('a stopped command', () => {
  it.each([
    ['quantize', /quantizing 1\/2/, ['--quantize', 'gptq', '--group-size', '16']],
    ['quantize', /quantizing 1\/2/, ['--quantize', 'awq', '--group-size', '16']],
    ['prune', /pruning 1\/2/, ['--prune', 'sparsegpt']],
  ])('goes on with --resume to the files of one that was not stopped: %s %s %j', async (command, words, more) => {
    const before = memory().numTensors;
    const name = more.join('').replaceAll('-', '');
    const [whole, resumed, checkpoint] = ['whole', 'resumed', 'walk'].map((what) => folder.at(`${what}-${name}`)) as [
      string,
      string,
      string,
    ];
    const args = [command, '--model', model, ...more, ...looking(), '--json', ...cpu];
    expect((await call([...args, '--out', whole])).code).toBe(0);
    const { code } = await stoppedAt(words, [...args, '--out', resumed, '--checkpoint', checkpoint]);
    expect(code).toBe(1);
    const again = await call([...args, '--out', resumed, '--checkpoint', checkpoint]);
    expect(again.json()).toMatchObject({
      error: { name: 'CheckpointError', message: expect.stringMatching(/stopped after window 1 of 2/) as string },
    });
    const answer = await call([...args, '--out', resumed, '--checkpoint', checkpoint, '--resume']);
    expect(answer.err).toContain('resumed after 1 of 2 windows\n');
    expect(answer.code).toBe(0);
    for (const file of await readdir(whole)) {
      const [expected, given] = await Promise.all([whole, resumed].map((of) => readFile(`${of}/${file}`)));
      expect([file, given!.equals(expected!)]).toEqual([file, true]);
    }
    expect(memory().numTensors).toBe(before);
  });
});

describe('prune', () => {
  const zerosOf = async (of: string): Promise<number> => {
    // 14 matrices of 4,608 entries in all: what a pruner finds there that takes nothing more.
    const again = await call([
      'prune',
      '--model',
      of,
      '--prune',
      'magnitude',
      '--sparsity',
      '0',
      '--out',
      folder.at('again'),
      '--json',
      ...cpu,
    ]);
    return again.json()['sparsity'] as number;
  };

  it.each([
    ['wanda', ['--sparsity', '0.25'], 0.25],
    ['sparsegpt', [], 0.5],
    ['dsnot', ['--initial', 'sparsegpt', '--pattern', '2:4'], 0.5],
    ['dsnot', ['--sparsity', '0.75'], 0.75],
  ])('%s %j writes a folder that loads again with its zeros', async (kind, more, sparsity) => {
    const before = memory().numTensors;
    const out = folder.at(`${kind}-${more.length}`);
    const args = ['prune', '--model', model, '--prune', kind, ...more, ...looking(), '--eval', text, '--max-tokens', '48'];
    const answer = await call([...args, '--out', out, '--json', ...cpu]);
    expect(answer.code).toBe(0);
    const { perplexity, ...rest } = answer.json() as { perplexity: { before: number; after: number } };
    expect(rest).toEqual({ out, sparsity, calibration: { windows: 2, tokens: 32 } });
    expect(perplexity.after).not.toBe(perplexity.before);
    expect(answer.err).toMatch(/pruning 2\/2 model\.layers\.1/);
    expect(await zerosOf(out)).toBe(sparsity);
    expect(memory().numTensors).toBe(before);
  });

  it('needs no text for magnitude, takes patterns of matrices, and tells people the same in words', async () => {
    const out = folder.at('magnitude');
    const answer = await call([
      'prune',
      '--model',
      model,
      '--prune',
      'magnitude',
      '--pattern',
      '1:4',
      '--at',
      'up_proj,down_proj',
      '--out',
      out,
      '--eval',
      text,
      ...cpu,
    ]);
    expect(answer.out).toMatch(/^perplexity [\d.]+ → [\d.]+\n75\.0 % of the entries are 0, saved in /);
    const half = await call(['prune', '--model', model, '--prune', 'magnitude', '--dtype', 'bf16', '--out', out, '--json', ...cpu]);
    expect(half.json()).toEqual({ out, sparsity: 0.5 });
    expect(await zerosOf(out)).toBe(0.5);
  });

  it('leaves no folder when it is stopped', async () => {
    const out = folder.at('stopped');
    const { code } = await stoppedAt(/calibrating/, ['prune', '--model', model, ...looking(), '--out', out, '--json', ...cpu]);
    expect(code).toBe(1);
    await expect(readdir(out)).rejects.toThrow(/ENOENT/);
  });
});

describe('wrong usage ends with 2 before a model is loaded, failures with 1', () => {
  it.each<[string, number, string[], RegExp]>([
    ['gptq without text', 2, ['quantize', '--quantize', 'gptq'], /gptq chooses by what its inputs look like: give --calibrate/],
    ['wanda without text', 2, ['prune'], /give --calibrate[^]*Without text: --prune magnitude/],
    ['nf4 with text', 2, ['quantize', '--calibrate', 'text.txt'], /nf4 reads no text/],
    ['a resume of nothing', 2, ['quantize', '--quantize', 'gptq', '--resume'], /--resume goes on from what --checkpoint holds/],
    ['rtn with a checkpoint', 2, ['quantize', '--quantize', 'rtn', '--checkpoint', 'walk'], /rtn reads no text/],
    ['magnitude with windows', 2, ['prune', '--prune', 'magnitude', '--calibrate-windows', '3'], /magnitude reads no text/],
    ['bits for nf4', 2, ['quantize', '--bits', '3'], /nf4 has no --bits[^]*--no-double-quant/],
    ['nested scales for rtn', 2, ['quantize', '--quantize', 'rtn', '--no-double-quant'], /rtn has no --no-double-quant/],
    ['5 bits', 2, ['quantize', '--quantize', 'rtn', '--bits', '5'], /bits/],
    ['activations of 9 bits', 2, ['quantize', '--activation-bits', '9'], /activations: bits must be a whole number from 2 to 8, got 9/],
    ['a group that is none', 2, ['quantize', '--quantize', 'rtn', '--group-size', 'all'], /'row'/],
    ['a quantizer without files', 2, ['quantize', '--quantize', 'int8-weights'], /there is no 'int8-weights'/],
    ['a pruner that is none', 2, ['prune', '--prune', 'wanda2'], /Did you mean 'wanda'/],
    ['a start that is none', 2, ['prune', '--prune', 'dsnot', '--initial', 'wandb', '--calibrate', 'x'], /Did you mean 'wanda'/],
    ['a start for wanda', 2, ['prune', '--initial', 'magnitude', '--calibrate', 'x'], /--initial is for dsnot/],
    ['sparsity and pattern', 2, ['prune', '--sparsity', '0.5', '--pattern', '2:4'], /--sparsity or --pattern, not both/],
    ['a sparsity of 1', 2, ['prune', '--sparsity', '1'], /sparsity must be from 0 to below 1, got 1/],
    ['a pattern that is none', 2, ['prune', '--pattern', '24'], /expected n:m/],
    ['5 of 4', 2, ['prune', '--pattern', '5:4'], /5/],
    ['tokens of no text', 2, ['quantize', '--max-tokens', '9'], /--max-tokens is of the text of --eval/],
    ['text that is not there', 1, ['prune', '--calibrate', '/nowhere.txt'], /no file '\/nowhere.txt'/],
  ])('%s', async (_what, code, args, message) => {
    // No such model: loading it would be another error.
    const answer = await call([...args, '--model', folder.at('nowhere'), '--out', folder.at('x'), '--json', ...cpu]);
    expect(answer.err).toMatch(message);
    expect(answer.code).toBe(code);
  });

  it('a window longer than the model, and a group that does not divide its rows, leave nothing behind', async () => {
    const before = memory().numTensors;
    const long = await call([
      'prune',
      '--model',
      model,
      '--calibrate',
      others,
      '--calibrate-context',
      '65',
      '--out',
      folder.at('x'),
      '--json',
      ...cpu,
    ]);
    expect([long.code, long.err]).toEqual([1, expect.stringMatching(/context must be a whole number from 1 to the model's 64, got 65/)]);
    const wide = await call(['quantize', '--model', model, '--quantize', 'gptq', ...looking(), '--out', folder.at('x'), '--json', ...cpu]);
    expect([wide.code, wide.err]).toEqual([1, expect.stringMatching(/64/)]);
    expect(memory().numTensors).toBe(before);
  });

  it('a calibrated quantizer has no place where a model is only read', async () => {
    const answer = await call(['eval', '--model', model, '--text', text, '--quantize', 'gptq', '--json', ...cpu]);
    expect([answer.code, answer.err]).toEqual([
      2,
      expect.stringMatching(/gptq needs text[^]*niwaki quantize --quantize gptq --calibrate FILE/),
    ]);
  });
});

describe('finetune', () => {
  it('prunes first, with the text that the recipe names', async () => {
    const out = folder.at('adapter');
    const args = ['finetune', '--model', model, '--data', text, '--context', '16', '--rank', '2', '--steps', '1', '--prune', 'wanda'];
    const answer = await call([...args, ...looking(), '--out', out, '--json', ...cpu]);
    expect(answer.code).toBe(0);
    expect(answer.err).toMatch(/pruning 14\/14 model\.layers\.1\.mlp\.down_proj/);
    expect(JSON.parse(await readFile(`${out}/recipe.json`, 'utf8'))).toMatchObject({
      prune: 'wanda',
      calibrate: others,
      calibrateWindows: 2,
      calibrateContext: 16,
    });
    const silent = await call([...args, '--out', folder.at('x'), '--json', ...cpu]);
    expect([silent.code, silent.err]).toEqual([1, expect.stringMatching(/wanda chooses by .* names no text in calibrate/)]);
  });
});
