import { describe, expect, it } from 'vitest';
import { ConfigError, memory, NotFoundError, ShapeError, StateError, withAdapters } from '@niwaki/tensor';
import { createStep, causalLM, languageBatch } from '@niwaki/engine';
import { createDraw } from '@niwaki/tensor';
import { adamw } from '@niwaki/optim';
import type { Model } from '@niwaki/nn';
import { lora, type LoraOptions } from '../src/index.ts';
import { activateAdapters, adapt, deleteAdapter, setAdapterScale, type Warning } from '@niwaki/peft';
import { distance, logitsOf } from './golden.ts';
import { baseBytes, onTiny, perturb, rejection, rows } from './support.ts';

describe('adapt', () => {
  it('starts at the base, freezes it, and makes the new set what trains', async () => {
    expect(
      await onTiny(async (model) => {
        const base = await logitsOf(model, rows);
        const set = await adapt(model, lora({ rank: 2 }), { at: ['q_proj', 'v_proj'] });
        expect(await logitsOf(model, rows)).toEqual(base);
        expect([...set.sites.keys()]).toHaveLength(4);
        expect(model.active).toEqual(['default']);
        const trained = [...model.parameters().values()].filter((parameter) => parameter.trainable);
        expect(trained.map((parameter) => parameter.path).sort()).toEqual(
          [...set.sites.keys()].flatMap((path) => [`${path}.lora_A.default.weight`, `${path}.lora_B.default.weight`]).sort(),
        );
        expect(trained.reduce((bytes, parameter) => bytes + parameter.bytes(), 0)).toBe(2 * 4 * (2 * (16 + 16) + 2 * (16 + 8)));
        perturb(set);
        expect(distance(await logitsOf(model, rows), base)).toBeGreaterThan(1e-4);
        expect(await logitsOf(model, rows, withAdapters('none'))).toEqual(base);
      }),
    ).toBe(0);
  });

  it('draws the same start for the same seed, and another for another', async () => {
    const first = async (seed: number): Promise<Float32Array> => {
      let values = new Float32Array();
      await onTiny(async (model) => {
        const set = await adapt(model, lora({ rank: 2 }), { at: 'q_proj', seed });
        values = (await set.sites
          .get('model.layers.0.self_attn.q_proj')!
          .parameters['lora_A.weight']!.read()
          .data()) as Float32Array<ArrayBuffer>;
      });
      return values;
    };
    expect(await first(1)).toEqual(await first(1));
    expect(await first(1)).not.toEqual(await first(2));
    const bound = 1 / Math.sqrt(16);
    const values = await first(1);
    expect(values.every((value) => Math.abs(value) <= bound)).toBe(true);
    expect(Math.max(...values.map(Math.abs))).toBeGreaterThan(bound / 2);
  });

  it('as DoRA, at embeddings and heads too, starts at the base', async () => {
    await onTiny(async (model) => {
      const base = await logitsOf(model, rows);
      const set = await adapt(model, lora({ rank: 2, dora: true }), { at: ['q_proj', 'embed_tokens', 'lm_head'] });
      expect(distance(await logitsOf(model, rows), base)).toBeLessThan(1e-5);
      expect([...set.sites.values()].every((adapter) => adapter.kind === 'dora')).toBe(true);
    });
  });

  it('starts orthogonal pairs whose product is zero though neither is', async () => {
    await onTiny(async (model) => {
      const base = await logitsOf(model, rows);
      const set = await adapt(model, lora({ rank: 4, init: 'orthogonal' }), { at: 'q_proj' });
      expect(distance(await logitsOf(model, rows), base)).toBeLessThan(1e-5);
      const [adapter] = [...set.sites.values()];
      for (const slot of ['lora_A.weight', 'lora_B.weight']) {
        expect(Math.max(...(await adapter!.parameters[slot]!.read().data()).map(Math.abs))).toBeGreaterThan(0.01);
      }
    });
  });

  it('trains with init false and gaussian as the names say', async () => {
    await onTiny(async (model) => {
      const base = await logitsOf(model, rows);
      await adapt(model, lora({ rank: 2, init: 'gaussian' }), { at: 'q_proj', name: 'gaussian' });
      expect(await logitsOf(model, rows)).toEqual(base);
      deleteAdapter(model, 'gaussian');
      await adapt(model, lora({ rank: 2, init: false }), { at: 'q_proj', name: 'random' });
      expect(distance(await logitsOf(model, rows), base)).toBeGreaterThan(1e-4);
    });
  });
});

describe('which sites', () => {
  const paths = async (model: Model, options: LoraOptions, at: string | readonly string[]): Promise<string[]> => {
    const set = await adapt(model, lora({ rank: 1, ...options }), { at });
    const found = [...set.sites.keys()];
    deleteAdapter(model, 'default');
    return found;
  };

  it('follow excludeModules, layersToTransform and modulesToSave', async () => {
    await onTiny(async (model) => {
      expect(await paths(model, {}, 'all-linear')).toHaveLength(14);
      expect(await paths(model, { excludeModules: ['mlp.up_proj', 'q_proj'] }, 'all-linear')).toHaveLength(10);
      expect(await paths(model, { excludeModules: String.raw`.*layers\.1\..*` }, 'all-linear')).toHaveLength(7);
      expect(await paths(model, { layersToTransform: 1 }, 'q_proj')).toEqual(['model.layers.1.self_attn.q_proj']);
      expect(await paths(model, { layersToTransform: [0], layersPattern: 'layers' }, ['q_proj', 'k_proj'])).toHaveLength(2);
      expect(await paths(model, { modulesToSave: ['self_attn'] }, 'all-linear')).toHaveLength(6);
    });
  });

  it('are an error that says what is near when there are none', async () => {
    await onTiny(async (model) => {
      const error = await rejection(adapt(model, lora(), { at: 'qproj' }));
      expect(error).toBeInstanceOf(NotFoundError);
      expect(error.message).toContain('q_proj');
      expect(await rejection(adapt(model, lora({ rank: 1, excludeModules: ['q_proj'] }), { at: 'q_proj' }))).toBeInstanceOf(NotFoundError);
      expect(await rejection(adapt(model, lora({ rank: 1, modulesToSave: ['lm_haed'] }), { at: 'q_proj' }))).toBeInstanceOf(NotFoundError);
      expect(model.adapters.size).toBe(0);
    });
  });

  it('are named in warnings where a pattern or an exclusion hits nothing', async () => {
    await onTiny(async (model) => {
      const heard: Warning[] = [];
      const set = await adapt(model, lora({ rank: 2, rankPattern: { q_proj: 4, nope: 3 }, excludeModules: ['norm'] }), {
        at: ['q_proj', 'v_proj'],
        onWarning: (warning) => heard.push(warning),
      });
      expect(set.warnings).toEqual(heard);
      expect(heard.map(({ kind, names }) => [kind, names])).toEqual([
        ['unused-exclude', ['norm']],
        ['unused-pattern', ['nope']],
      ]);
    });
  });
});

describe('options out of range', () => {
  it.each<[LoraOptions, string, string]>([
    [{ rank: 0 }, 'rank', '0'],
    [{ rank: -1 }, 'rank', '-1'],
    [{ rank: 2.5 }, 'rank', '2.5'],
    [{ alpha: 0 }, 'alpha', '0'],
    [{ alpha: Number.NaN }, 'alpha', 'NaN'],
    [{ alpha: Number.POSITIVE_INFINITY }, 'alpha', 'Infinity'],
    [{ dropout: 1 }, 'dropout', '1'],
    [{ dropout: -0.1 }, 'dropout', '-0.1'],
    [{ dropout: Number.NaN }, 'dropout', 'NaN'],
    [{ init: 'pissa_niter_0' as 'gaussian' }, 'init', "'pissa_niter_0'"],
    [{ bias: 'some' as 'all' }, 'bias', "'some'"],
    [{ rankPattern: { q_proj: 0 } }, "rankPattern['q_proj']", '0'],
    [{ alphaPattern: { q_proj: 0 } }, "alphaPattern['q_proj']", '0'],
  ])('%o names the field and the value', (options, field, value) => {
    let error: unknown;
    try {
      lora(options);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).message).toContain(`${field} must be`);
    expect((error as ConfigError).message).toContain(`got ${value}`);
    expect((error as ConfigError).details['field']).toBe(field);
  });

  it('that a site cannot have name the site, and leave the model as it was', async () => {
    expect(
      await onTiny(async (model) => {
        const before = memory().numTensors;
        const large = await rejection(adapt(model, lora({ rank: 9 }), { at: ['q_proj', 'v_proj'] }));
        expect(large).toBeInstanceOf(ShapeError);
        expect(large.details).toMatchObject({ path: 'model.layers.0.self_attn.v_proj', rank: 9 });
        expect(await rejection(adapt(model, lora({ rank: 3, init: 'orthogonal' }), { at: 'q_proj' }))).toBeInstanceOf(ShapeError);
        expect(await rejection(adapt(model, lora({ rank: 2, loraBias: true }), { at: 'embed_tokens' }))).toBeInstanceOf(ConfigError);
        expect(await rejection(adapt(model, lora({ rank: 2, trainableTokens: [3] }), { at: 'embed_tokens' }))).toBeInstanceOf(ConfigError);
        expect((await rejection(adapt(model, lora({ rank: 2, trainableTokens: [32] }), { at: 'q_proj' }))).message).toContain('32');
        expect((await rejection(adapt(model, lora({ rank: 2, trainableTokens: [1, 1] }), { at: 'q_proj' }))).message).toContain('twice');
        expect(await rejection(adapt(model, lora({ rank: 2 }), { at: 'q_proj', name: 'a.b' }))).toBeInstanceOf(ConfigError);
        expect(await rejection(adapt(model, lora({ rank: 2, excludeModules: '(' }), { at: 'q_proj' }))).toMatchObject({
          name: 'FormatError',
        });
        expect(memory().numTensors).toBe(before);
        expect([...model.parameters().values()].every((parameter) => parameter.trainable)).toBe(true);
        await adapt(model, lora({ rank: 2 }), { at: 'q_proj' });
        expect(await rejection(adapt(model, lora({ rank: 2 }), { at: 'q_proj' }))).toBeInstanceOf(StateError);
      }),
    ).toBe(0);
  });
});

describe('what trains beside the pairs', () => {
  it('is a copy: whole modules, biases and token rows leave the base alone', async () => {
    expect(
      await onTiny(async (model) => {
        const base = await logitsOf(model, rows);
        const set = await adapt(model, lora({ rank: 2, modulesToSave: ['lm_head', 'model.norm'], trainableTokens: [1, 7] }), {
          at: 'q_proj',
        });
        expect([...set.replaced.keys()].sort()).toEqual(['lm_head.weight', 'model.norm.weight']);
        expect(distance(await logitsOf(model, rows), base)).toBe(0);
        const before = await baseBytes(model);
        const step = await trainThree(model);
        expect(step.changed.sort()).toEqual(step.trained.sort());
        expect(await baseBytes(model)).toEqual(before);
        expect(await logitsOf(model, rows, withAdapters('none'))).toEqual(base);
      }),
    ).toBe(0);
  });

  it('may be the biases of the base', async () => {
    await onTiny(
      async (model) => {
        const all = await adapt(model, lora({ rank: 2, bias: 'all' }), { at: 'o_proj', name: 'all' });
        expect(all.replaced.size).toBe(6);
        const own = await adapt(model, lora({ rank: 2, bias: 'lora_only', dora: true }), { at: 'q_proj', name: 'own' });
        expect([...own.replaced.keys()]).toEqual(['model.layers.0.self_attn.q_proj.bias', 'model.layers.1.self_attn.q_proj.bias']);
        const { changed, trained } = await trainThree(model);
        expect(changed.sort()).toEqual(trained.sort());
      },
      { model_type: 'qwen2' },
    );
  });
});

/** Three steps of AdamW on everything trainable: which parameters there are, and which of all changed. */
async function trainThree(model: Model): Promise<{ trained: string[]; changed: string[] }> {
  const values = async (): Promise<Map<string, string>> => {
    const found = new Map<string, string>();
    for (const [path, parameter] of model.parameters())
      if (parameter.role !== 'statistic') found.set(path, Buffer.from((await parameter.raw()).bytes).toString('base64'));
    return found;
  };
  const trained = [...model.parameters()].filter(([, parameter]) => parameter.trainable).map(([path]) => path);
  const before = await values();
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 0.05 }) });
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: 32 },
  );
  for (let attempt = 0; attempt < 3; attempt++) {
    const result = await step.run({ batches: [batch], attempt, rate: 0.05, progress: 0, draw: createDraw(1, attempt) });
    expect(result.applied).toBe(true);
  }
  step.dispose();
  for (const tensor of Object.values(batch)) (tensor as { dispose?: () => void } | undefined)?.dispose?.();
  const after = await values();
  return { trained, changed: [...after].filter(([path, bytes]) => bytes !== before.get(path)).map(([path]) => path) };
}

describe('several adapters', () => {
  it('are switched, added, turned down and deleted, each as if it were alone', async () => {
    expect(
      await onTiny(async (model) => {
        const base = await logitsOf(model, rows);
        const alone = new Map<string, Float32Array>();
        for (const [name, at] of [
          ['a', 'q_proj'],
          ['b', 'down_proj'],
        ] as const) {
          perturb(await adapt(model, lora({ rank: 2, alpha: 6 }), { at, name }), { seed: name.length + at.length });
          alone.set(name, await logitsOf(model, rows));
        }
        expect(model.active).toEqual(['b']);
        activateAdapters(model, ['a'], { train: true });
        expect(await logitsOf(model, rows)).toEqual(alone.get('a'));
        expect([...model.parameters().values()].filter((p) => p.trainable).every((p) => p.path.includes('.a.'))).toBe(true);
        activateAdapters(model, ['a', 'b']);
        const both = await logitsOf(model, rows);
        activateAdapters(model, ['b', 'a']);
        expect(distance(await logitsOf(model, rows), both)).toBeLessThan(1e-5);
        expect(distance(both, alone.get('a')!)).toBeGreaterThan(1e-3);
        setAdapterScale(model, 'b', 0);
        expect(distance(await logitsOf(model, rows), alone.get('a')!)).toBeLessThan(1e-6);
        setAdapterScale(model, 'b', 1);
        expect(() => setAdapterScale(model, 'b', Number.NaN)).toThrow(ConfigError);
        activateAdapters(model, []);
        expect(await logitsOf(model, rows)).toEqual(base);
        expect(() => activateAdapters(model, ['a', 'c'])).toThrow(NotFoundError);
        expect(model.active).toEqual([]);
        activateAdapters(model, ['b']);
        deleteAdapter(model, 'b');
        expect(model.active).toEqual(['a']);
        expect(await logitsOf(model, rows)).toEqual(alone.get('a'));
        expect(() => deleteAdapter(model, 'b')).toThrow(NotFoundError);
        deleteAdapter(model, 'a');
        expect(await logitsOf(model, rows)).toEqual(base);
      }),
    ).toBe(0);
  });

  it('leave the place of the active one to the first of the others by name, and of one among several to nobody', () =>
    onTiny(async (model) => {
      for (const name of ['c', 'b', 'a', 'd']) await adapt(model, lora({ rank: 1 }), { at: 'q_proj', name });
      deleteAdapter(model, 'd');
      expect(model.active).toEqual(['a']);
      activateAdapters(model, ['c', 'b']);
      deleteAdapter(model, 'b');
      expect(model.active).toEqual(['c']);
    }));

  it('go back to what was active when a view is dropped or a forward throws', async () => {
    await onTiny(async (model) => {
      perturb(await adapt(model, lora({ rank: 2 }), { at: 'q_proj' }));
      const active = await logitsOf(model, rows);
      const base = await logitsOf(model, rows, withAdapters('none'));
      expect(distance(active, base)).toBeGreaterThan(1e-4);
      await expect(logitsOf(model, [[1, 99]], withAdapters('none'))).rejects.toThrow();
      await expect(logitsOf(model, rows, withAdapters(['absent']))).rejects.toThrow(NotFoundError);
      expect(await logitsOf(model, rows)).toEqual(active);
    });
  });
});
