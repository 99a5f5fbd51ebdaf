/** A stage that runs for its record alone leaves out the product at its end, and its gradients are the same bit for bit. */
import { describe, expect, it } from 'vitest';
import { memory, mul, recordTape, tidy, type Parameter } from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { tokenBatch, type Adapter, type AdapterSet, type Carry, type Model } from '../src/index.ts';
import { disposeSet, setOf } from './adapter-set.ts';

const batch = tokenBatch([[3, 17, 5, 29, 8]], { vocabularySize: 32 });
const downPath = 'model.layers.1.mlp.down_proj';

/** Gradients of the second layer's input and of its trained parameters, and whether the last product was told that it is unread. */
function backward(model: Model, carry: Carry, trained: readonly Parameter[], unread: boolean): { gradients: number[][]; told: boolean } {
  const [site] = model.sites(downPath);
  const weight = site!.weight!;
  let told = false;
  site!.weight = { ...weight, apply: (x, call) => ((told = call.unread === true), weight.apply(x, call)) };
  try {
    const gradients = tidy(() => {
      const watched = new Map(trained.map((parameter) => [parameter, parameter.read()]));
      const call = { ...createCall({ batch, training: true, watched }), unread };
      const tape = recordTape(() => model.stages()[2]!.run(carry, call));
      const h = tape.value['h']!;
      const xs = [carry['h']!, ...watched.values()];
      return tape.pull(xs, [{ of: h, value: carry['h']! }]).map((gradient) => [...gradient!.dataSync()]);
    });
    return { gradients, told };
  } finally {
    site!.weight = weight;
  }
}

/** Adapters that multiply what they are around. */
function around(paths: readonly string[], point: Adapter['point']): AdapterSet {
  const adapter: Adapter = { kind: 'scaling', point, parameters: {}, apply: (x, next) => mul(next(x), 0.5) };
  return { ...setOf('extra', []), sites: new Map(paths.map((path) => [path, adapter])) };
}

/** What enters the second layer. */
function streams(model: Model): Carry {
  const call = createCall({ batch });
  const [embed, first] = model.stages();
  const start = embed!.run({}, call);
  return { ...start, ...first!.run(start, call) };
}

/** What differs between a record alone and one whose value is read, over everything that trains and the adapter alone. */
async function compared(attach: (model: Model) => AdapterSet | undefined): Promise<{ told: boolean[]; equal: boolean; leaked: number }> {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const set = attach(model);
  if (set !== undefined) model.attach(set);
  const pairs = tidy(() => {
    const carry = streams(model);
    const all = model.stages()[2]!.parameters();
    const own = all.filter(({ path }) => path.endsWith('.extra'));
    return (own.length === 0 ? [all] : [all, own]).map((trained) => [false, true].map((unread) => backward(model, carry, trained, unread)));
  });
  if (set !== undefined) disposeSet(model.detach(set.name));
  model.dispose();
  return {
    told: pairs.flat().map(({ told }) => told),
    equal: pairs.every(([first, again]) => JSON.stringify(first!.gradients) === JSON.stringify(again!.gradients)),
    leaked: memory().numTensors - before,
  };
}

describe('a block that is computed again for its backward pass', () => {
  it('leaves out the last product of a plain model', async () => {
    expect(await compared(() => undefined)).toEqual({ told: [false, true], equal: true, leaked: 0 });
  });

  it('leaves it out under an adapter that adds to it', async () => {
    const given = await compared((model) => setOf('extra', model.sites('**.down_proj')));
    expect(given).toEqual({ told: [false, true, false, true], equal: true, leaked: 0 });
  });

  it.each(['ffn', 'block'] as const)('keeps it for an adapter that reads what the %s gives', async (point) => {
    const sitesOf = (model: Model) => model.sites(() => true, { points: [point] });
    const given = await compared((model) =>
      around(
        sitesOf(model).map(({ path }) => path),
        point,
      ),
    );
    expect(given).toEqual({ told: [false, false], equal: true, leaked: 0 });
  });

  it('keeps it for an adapter of the map itself that reads it', async () => {
    expect(await compared(() => around([downPath], 'linear'))).toEqual({ told: [false, false], equal: true, leaked: 0 });
  });
});
