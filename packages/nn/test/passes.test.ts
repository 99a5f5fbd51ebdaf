import { env, getBackend, getKernel } from '@tensorflow/tfjs-core';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { add, denseParameter, memory, mul, ropeOp, sub, tidy } from '@niwaki/tensor';
import { generate, type Adapter, type AdapterSet, type GenerateOptions, type Model } from '@niwaki/nn';
import { denseWeight } from '@niwaki/weights';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { disposeSet, setOf } from './adapter-set.ts';

afterEach(() => vi.restoreAllMocks());

const prompt = [1, 2, 3];

/** Continues, and lets `change` do something to the model before the token of an index is made. */
async function idsOf(model: Model, options: GenerateOptions, change: (index: number) => void = () => {}): Promise<number[]> {
  const ids: number[] = [];
  const tokens = generate(model, prompt, { maxNewTokens: 24, stopIds: [], ...options });
  for (let index = 0; ; index++) {
    change(index);
    const { value, done } = await tokens.next();
    if (done === true) return ids;
    ids.push(value.id);
  }
}

describe.skipIf(getBackend() === 'cpu')('tokens behind a cache', () => {
  it('are replays: kernels are asked for as the prompt is read, as one pass is recorded, and again where the cache moves', async () => {
    const model = await tinyLlama();
    const asked = vi.spyOn(getKernel(ropeOp.kernelName, getBackend())!, 'kernelFunc');
    const layers = 2;
    await idsOf(model, { maxNewTokens: 61 });
    expect(asked).toHaveBeenCalledTimes(2 * layers);
    asked.mockClear();
    // With the prompt 64 rows are full.
    await idsOf(model, { maxNewTokens: 63 });
    expect(asked).toHaveBeenCalledTimes(3 * layers);
    asked.mockClear();
    await idsOf(model, { maxNewTokens: 5, cache: false });
    expect(asked).toHaveBeenCalledTimes(5 * layers);
    model.dispose();
  });

  const down = 'model.layers.0.mlp.down_proj.weight';
  const scaled = (model: Model, name: string): AdapterSet => {
    const set = setOf(name, model.sites('all-linear'));
    const sites = [...set.sites].map(([path, adapter]): [string, Scaled] => {
      const own: Scaled = {
        ...adapter,
        strength: 4,
        apply: (x, next, call, site) => {
          const y = next(x);
          return add(
            y,
            mul(
              sub(
                adapter.apply(x, () => y, call, site),
                y,
              ),
              own.strength,
            ),
          );
        },
      };
      return [path, own];
    });
    return { ...set, sites: new Map(sites) };
  };
  interface Scaled extends Adapter {
    strength: number;
  }
  /** Each changes a model with an adapter 'one' on it. */
  const changes: Readonly<Record<string, (model: Model) => void>> = {
    'a written parameter': (model) => {
      const parameter = model.parameters().get(down)!;
      parameter.write(tidy(() => mul(parameter.read(), -3)));
    },
    'an adapter taken off': (model) => disposeSet(model.detach('one')),
    'an adapter put on': (model) => {
      model.attach(setOf('two', model.sites('all-linear'), { scale: -5 }));
      model.active = ['one', 'two'];
    },
    'other active adapters': (model) => {
      model.active = [];
    },
    "an adapter's setting": (model) => {
      for (const adapter of model.adapters.get('one')!.sites.values()) (adapter as Scaled).strength *= -1;
    },
    'another weight': (model) => {
      const [site] = model.sites('model.layers.1.self_attn.v_proj');
      const value = tidy(() => mul(site!.weight!.dense(), -2));
      model.replace(site!.path, denseWeight(denseParameter(`${site!.path}.weight`, value, { role: 'matrix' })));
    },
  };

  it.each(Object.keys(changes))('follow %s between two of them', async (name) => {
    const before = memory().numTensors;
    const run = async (change?: (model: Model) => void): Promise<number[]> => {
      const model = await tinyLlama();
      model.attach(scaled(model, 'one'));
      const ids = await idsOf(model, {}, (index) => (index === 9 ? change?.(model) : undefined));
      model.dispose();
      return ids;
    };
    const [followed, unchanged] = [await run(changes[name]), await run()];
    expect(followed.slice(0, 9)).toEqual(unchanged.slice(0, 9));
    expect(followed).not.toEqual(unchanged);
    // Where tfjs looks at every launch, and prints it, nothing is recorded.
    for (const print of ['log', 'warn'] as const) vi.spyOn(console, print).mockImplementation(() => undefined);
    env().set('DEBUG', true);
    try {
      expect(followed).toEqual(await run(changes[name]));
    } finally {
      env().set('DEBUG', false);
    }
    expect(memory().numTensors).toBe(before);
  });
});
