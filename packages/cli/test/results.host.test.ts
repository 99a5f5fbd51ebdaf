import { readdir, readFile, rm } from 'node:fs/promises';
import { memory } from '@niwaki/tensor';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { call } from './support/call.ts';
import { tinyFolder, type TinyFolder } from './support/tiny-folder.ts';

let folder: TinyFolder;
let model: string;
let data: string;
let text: string;
let others: string;
beforeAll(async () => {
  folder = await tinyFolder();
  model = folder.at('model');
  data = await folder.write('data.txt', 'The gardener trims the pine. The pine grows slowly.');
  text = await folder.write('text.txt', 'A crane stands by the pond. The gardener rests under the pine.');
  others = await folder.write('others.txt', 'Moss covers the stones by the gate, and a lantern stands where the path turns. '.repeat(4));
});
afterAll(() => folder.remove());

const cpu = ['--device', 'cpu'];
const quick = ['--rank', '2', '--steps', '3', '--context', '16', '--learning-rate', '0.02', '--seed', '4'];

/** Trains, and what it says of the other text at its end. */
async function trained(out: string, more: readonly string[]): Promise<number> {
  const base = ['--model', model, '--data', data, '--calibrate', others, '--calibrate-windows', '2', '--calibrate-context', '16'];
  const answer = await call(['finetune', ...base, ...quick, ...more, '--evaluate', text, '--out', out, '--json', ...cpu]);
  expect(answer).toMatchObject({ code: 0 });
  return Number(/step 3: .*perplexity (\d+\.\d+)/.exec(answer.err)![1]);
}
const perplexityOf = async (flags: readonly string[]): Promise<number> => {
  const answer = await call(['eval', ...flags, '--text', text, '--context', '16', '--json', ...cpu]);
  expect(answer).toMatchObject({ code: 0 });
  return answer.json()['perplexity'] as number;
};
/** As many digits as training tells. */
const digits = 4;
const bases: readonly [name: string, recipe: object, format: string][] = [
  ['gptq', { quantize: { kind: 'gptq', bits: 4, groupSize: 16 } }, 'affine'],
  ['wanda', { prune: { kind: 'wanda', sparsity: 0.5 } }, 'masked'],
];

describe('the folder of finetune', () => {
  it.each(bases)('predicts, generates and merges as at the end of training, over %s', async (kind, base, format) => {
    const before = memory().numTensors;
    const more = ['--recipe', await folder.write(`${kind}.json`, JSON.stringify(base))];
    const [made, saved] = [folder.at(`${kind}-made`), folder.at(`${kind}-saved`)];
    const atTheEnd = await trained(made, more);
    expect(await perplexityOf(['--model', model])).not.toBeCloseTo(atTheEnd, 1);
    const again = await perplexityOf(['--adapter', made]);
    expect(again).toBeCloseTo(atTheEnd, digits);
    expect(await trained(saved, [...more, '--save-base'])).toBe(atTheEnd);
    expect(await perplexityOf(['--adapter', saved])).toBe(again);
    expect(await perplexityOf(['--adapter', made, '--model', `${saved}/base`])).toBe(again);

    const say = async (dir: string): Promise<unknown> => {
      const answer = await call(['generate', '--adapter', dir, '--prompt', 'The ', '--max-new-tokens', '8', '--json', ...cpu]);
      return answer.json()['ids'];
    };
    expect(await say(made)).toEqual(await say(saved));

    const merged = folder.at(`${kind}-merged`);
    expect((await call(['merge', '--adapter', made, '--out', merged, '--json', ...cpu])).json()).toMatchObject({ sites: 14 });
    // f32 sums in another order.
    expect(Math.log(await perplexityOf(['--model', merged]))).toBeCloseTo(Math.log(again), 4);

    const kinds = (await call(['inspect', '--adapter', made, '--json', ...cpu])).json()['modules'] as { path: string; format: string }[];
    expect(kinds.find(({ path }) => path.endsWith('0.mlp.up_proj'))!.format).toBe(format);
    expect(memory().numTensors).toBe(before);
  });

  it('tells what it makes again, and leaves the base away where nobody asked for it', async () => {
    const out = folder.at('told');
    await trained(out, ['--prune', 'wanda']);
    expect((await readdir(out)).sort()).toEqual([
      'adapter_config.json',
      'adapter_model.safetensors',
      'base.json',
      'checkpoints',
      'recipe.json',
      'run.jsonl',
    ]);
    expect(JSON.parse(await readFile(`${out}/base.json`, 'utf8'))).toMatchObject({
      recipe: { model, prune: 'wanda', calibrate: others },
      made: { changes: [{ kind: 'wanda', at: 'all-linear', calibration: expect.stringMatching(/^[0-9a-f]{16}$/) }] },
    });
    const answer = await call(['eval', '--adapter', out, '--text', text, '--context', '16', ...cpu]);
    expect(answer.err).toMatch(/pruning 14\/14 model\.layers\.1\.mlp\.down_proj\n/);
    expect(answer.err).not.toMatch(/warning/);
  });

  it('is put on a model that is quantized otherwise where the flags say so', async () => {
    const out = folder.at('otherwise');
    await trained(out, ['--prune', 'wanda']);
    expect(await perplexityOf(['--adapter', out, '--model', model, '--quantize', 'nf4'])).not.toBe(await perplexityOf(['--adapter', out]));
    const answer = await call(['eval', '--adapter', out, '--quantize', 'nf4', '--text', text, '--json', ...cpu]);
    expect(answer.code).toBe(2);
  });

  it('says what is missing: a model, a text', async () => {
    const out = folder.at('missing');
    await trained(out, ['--prune', 'wanda']);
    await rm(`${out}/base.json`);
    const eval_ = ['eval', '--text', text, '--json', ...cpu];
    const alone = await call([...eval_, '--adapter', out]);
    expect(alone.code).toBe(2);
    expect(alone.json()).toMatchObject({
      error: { name: 'UsageError', message: expect.stringMatching(/give --model: '.*missing' has no base\.json/) },
    });
    expect((await call(eval_)).json()).toMatchObject({ error: { message: 'give --model' } });
    const lost = folder.at('lost');
    const own = await folder.write('own.txt', 'Rain fell on the moss. '.repeat(8));
    await trained(lost, ['--prune', 'wanda', '--calibrate', own]);
    await rm(own);
    const answer = await call([...eval_, '--adapter', lost]);
    expect(answer.code).toBe(1);
    expect(answer.json()).toMatchObject({ error: { name: 'NotFoundError', message: expect.stringContaining(own) } });
  });
});
