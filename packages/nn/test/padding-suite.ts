/** Padding and packing change nothing: the same checks on every device. */
import { expect, it } from 'vitest';
import {
  add,
  crossEntropy,
  dispose,
  fill,
  gather,
  gradientsOf,
  memory,
  sum,
  tensor1d,
  tidy,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { DataError } from '@niwaki/tensor';
import { checkIds, packedBatch, tokenBatch, type Carry, type Model, type TokenBatch } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { disposeBatch, largestDifference } from './numbers.ts';

// f32, a handful of sums in another order.
const tolerance = 1e-5;
const vocabularySize = 32;
const long = [3, 1, 4, 1, 5, 9, 2, 6];
const short = [7];

interface Run {
  readonly logits: Float32Array;
  readonly loss: number;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** Logits of the chosen rows, the summed loss of the rows that have a target, and every parameter's gradient of it. */
async function run(model: Model, batch: TokenBatch, rows: readonly number[], targets: readonly number[]): Promise<Run> {
  const parameters = [...model.parameters().values()];
  const watched = new Map<Parameter, Tensor>(parameters.map((parameter) => [parameter, parameter.read()]));
  const one = fill([], 1) as Scalar;
  const index = tensor1d([...rows], 'int32');
  const target = tensor1d([...targets], 'int32');
  const forward = (): { logits: Tensor; loss: Tensor } => {
    const call = createCall({ batch, watched, training: true });
    let carry: Carry = {};
    const stages = model.stages();
    for (const stage of stages.slice(0, -1)) carry = { ...carry, ...stage.run(carry, call) };
    const { logits } = stages.at(-1)!.run({ h: gather(carry['h'] as Tensor2D, index) }, call) as { logits: Tensor2D };
    return { logits, loss: sum(crossEntropy(logits, target as Tensor1D)) };
  };
  const { value, gradients } = gradientsOf(
    forward,
    parameters.map((parameter) => parameter.read()),
    ({ loss }) => [{ of: loss, value: one }],
  );
  const values = await Promise.all(gradients.map(async (gradient) => (await gradient!.data()) as Float32Array));
  const result = {
    logits: (await value.logits.data()) as Float32Array,
    loss: (await value.loss.data())[0]!,
    gradients: new Map(parameters.map(({ path }, i) => [path, values[i]!])),
  };
  dispose([value.logits, value.loss, one, index, target, ...gradients.map((gradient) => gradient!)]);
  return result;
}

const nextOf = (ids: readonly number[]): number[] => [...ids.slice(1), -100];
const rowsFrom = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);

function sameRun(run: Run, [a, b]: readonly [Run, Run]): void {
  expect(largestDifference(run.logits, [...a.logits, ...b.logits])).toBeLessThan(tolerance);
  expect(Math.abs(run.loss - (a.loss + b.loss))).toBeLessThan(tolerance * run.loss);
  for (const [path, gradient] of run.gradients) {
    const expected = a.gradients.get(path)!.map((value, i) => value + b.gradients.get(path)![i]!);
    expect({ path, near: largestDifference(gradient, expected) < tolerance * 10 }).toEqual({ path, near: true });
    expect(gradient.every(Number.isFinite)).toBe(true);
  }
}

export function paddingSuite(): void {
  it.each(['left', 'right'] as const)(
    'rows of 8 tokens and of 1, padded on the %s, give logits, loss and gradients of the rows alone',
    async (padSide) => {
      const before = memory().numTensors;
      const model = await tinyLlama();
      const alone: Run[] = [];
      for (const ids of [long, short]) {
        const batch = tokenBatch([ids], { vocabularySize });
        alone.push(await run(model, batch, rowsFrom(0, ids.length), nextOf(ids)));
        disposeBatch(batch);
      }
      // Two more columns than the longest row, so that every row is padded.
      const batch = tokenBatch([long, short], { vocabularySize, padSide, padTo: 10 });
      const rows = padSide === 'left' ? [...rowsFrom(2, 8), 19] : [...rowsFrom(0, 8), 10];
      const padded = await run(model, batch, rows, [...nextOf(long), ...nextOf(short)]);
      sameRun(padded, alone as [Run, Run]);
      disposeBatch(batch);
      model.dispose();
      expect(memory().numTensors).toBe(before);
    },
  );

  it('two documents packed in one row give logits, loss and gradients of two rows', async () => {
    const before = memory().numTensors;
    const model = await tinyLlama();
    const documents = [
      [3, 1, 4],
      [1, 5, 9, 2],
    ];
    const alone: Run[] = [];
    for (const ids of documents) {
      const batch = tokenBatch([ids], { vocabularySize });
      alone.push(await run(model, batch, rowsFrom(0, ids.length), nextOf(ids)));
      disposeBatch(batch);
    }
    const batch = packedBatch([documents], { vocabularySize, padTo: 9 });
    // The last token of a document predicts nothing, least of all the first of the next.
    sameRun(await run(model, batch, rowsFrom(0, 7), documents.flatMap(nextOf)), alone as [Run, Run]);
    disposeBatch(batch);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('a padding row that sees no key stays finite, whatever the id it holds', async () => {
    const model = await tinyLlama();
    const batches = [0, 31].map((padId) => tokenBatch([short, long], { vocabularySize, padSide: 'left', padId }));
    const all = rowsFrom(0, 16);
    const [a, b] = (await Promise.all(
      batches.map((batch) =>
        run(
          model,
          batch,
          all,
          all.map(() => 1),
        ),
      ),
    )) as [Run, Run];
    expect([...a.logits, ...b.logits].every(Number.isFinite)).toBe(true);
    expect(largestDifference(a.logits.subarray(7 * 32), b.logits.subarray(7 * 32))).toBe(0);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('an id outside the vocabulary throws before it reaches the device', () => {
    const before = memory().numTensors;
    for (const id of [32, -1, -100, 1.5, NaN]) {
      expect(() => tokenBatch([[1, id]], { vocabularySize })).toThrow(DataError);
      expect(() => tokenBatch([[1]], { vocabularySize, padId: id })).toThrow(DataError);
      expect(() => checkIds([id], { vocabularySize, where: 'here' })).toThrow(/outside the vocabulary/);
    }
    expect(memory().numTensors).toBe(before);
  });

  it('a block computed twice gives the same bits', async () => {
    const model = await tinyLlama();
    const batch = tokenBatch([long, short], { vocabularySize, padSide: 'left' });
    const call = createCall({ batch });
    const [embed, block, , head] = model.stages();
    const carry = tidy(() => embed!.run({}, call));
    const twice = [0, 1].map(() => tidy(() => block!.run(carry, call)['h']!));
    const heads = twice.map((h) => tidy(() => head!.run({ h }, call)['logits']!));
    const [a, b, c, d] = await Promise.all([...twice, ...heads].map((tensor) => tensor.data()));
    expect(b).toEqual(a);
    expect(d).toEqual(c);
    dispose([...twice, ...heads, ...Object.values(carry)]);
    disposeBatch(batch);
    model.dispose();
  });

  it('the head takes any rows and gives each the logits it has among all', async () => {
    const model = await tinyLlama({ tie_word_embeddings: true });
    const batch = tokenBatch([long], { vocabularySize });
    const call = createCall({ batch });
    const stages = model.stages();
    const { all, some } = tidy(() => {
      let carry: Carry = {};
      for (const stage of stages.slice(0, -1)) carry = { ...carry, ...stage.run(carry, call) };
      const h = carry['h'] as Tensor2D;
      const head = stages.at(-1)!;
      const picked = gather(h, tensor1d([6, 1, 1], 'int32'));
      return { all: head.run({ h }, call)['logits']!, some: add(head.run({ h: picked }, call)['logits']!, 0) };
    });
    expect(some.shape).toEqual([3, 32]);
    const [whole, part] = (await Promise.all([all.data(), some.data()])) as [Float32Array, Float32Array];
    for (const [i, row] of [6, 1, 1].entries()) {
      expect(largestDifference(part.subarray(i * 32, (i + 1) * 32), whole.subarray(row * 32, (row + 1) * 32))).toBeLessThan(tolerance);
    }
    dispose([all, some]);
    disposeBatch(batch);
    model.dispose();
  });
}
