import { describe, expect, it } from 'vitest';
import type { Point, Site } from '@niwaki/nn';
import { ConfigError, FormatError, NotFoundError } from '@niwaki/tensor';
import { defaultTargetsOf, layerOf, targetSites, type TargetModules, type TargetOptions } from '../src/index.ts';

const names = ['self_attn.q_proj', 'self_attn.v_proj', 'mlp.down_proj'];
const site = (path: string, point: Point = 'linear'): Site => ({ path, point, inputId: path });
/** Two layers of three maps, a map outside of them whose name ends like theirs, an embedding and a head. */
const sites = [
  site('model.embed_tokens', 'embedding'),
  ...[0, 1].flatMap((layer) => names.map((name) => site(`model.layers.${layer}.${name}`))),
  site('model.tower.v_proj'),
  site('lm_head', 'head'),
];

interface Chosen {
  readonly paths: readonly string[];
  readonly warned: readonly (readonly string[])[];
}

function chosen(targets: TargetModules, options: TargetOptions = {}): Chosen {
  const warned: (readonly string[])[] = [];
  const found = targetSites(sites, targets, options, (_kind, _message, list) => warned.push(list));
  return { paths: found.map(({ path }) => path.replace('model.layers.', '').replace('self_attn.', '')), warned };
}

describe('target modules', () => {
  it.each<[string, TargetModules, TargetOptions, string[]]>([
    ['a name is what follows a dot', ['v_proj'], {}, ['0.v_proj', '1.v_proj', 'model.tower.v_proj']],
    ['a name of more parts too', ['self_attn.v_proj'], {}, ['0.v_proj', '1.v_proj']],
    ['a name is no part of one', ['proj', 'q_proj'], {}, ['0.q_proj', '1.q_proj']],
    ['a whole path', ['model.layers.1.mlp.down_proj'], {}, ['1.mlp.down_proj']],
    [
      'a pattern matches from end to end',
      String.raw`model\.layers\.\d+\.self_attn\.(q|v)_proj`,
      {},
      ['0.q_proj', '0.v_proj', '1.q_proj', '1.v_proj'],
    ],
    ['in the words of Python', String.raw`(?P<where>.*)\.q_proj\Z`, {}, ['0.q_proj', '1.q_proj']],
    [
      'all linear maps but the head',
      'ALL-Linear',
      {},
      ['0.q_proj', '0.v_proj', '0.mlp.down_proj', '1.q_proj', '1.v_proj', '1.mlp.down_proj', 'model.tower.v_proj'],
    ],
    ['excluded by name', ['q_proj', 'v_proj'], { excludeModules: ['tower.v_proj', 'q_proj'] }, ['0.v_proj', '1.v_proj']],
    ['excluded by pattern', ['q_proj'], { excludeModules: String.raw`.*\.0\..*` }, ['1.q_proj']],
    ['never what is saved whole', ['q_proj', 'down_proj'], { modulesToSave: ['mlp'] }, ['0.q_proj', '1.q_proj']],
    ['of one layer', ['v_proj'], { layersToTransform: 1 }, ['1.v_proj']],
    ['of layers under a name', ['v_proj'], { layersToTransform: [0], layersPattern: 'layers' }, ['0.v_proj']],
    [
      'a whole path is not asked for its layer',
      ['model.layers.0.mlp.down_proj', 'q_proj'],
      { layersToTransform: [1] },
      ['0.mlp.down_proj', '1.q_proj'],
    ],
  ])('%s', (_, targets, options, expected) => expect(chosen(targets, options).paths).toEqual(expected));

  it('name what hits nothing beside others, and what takes nothing out', () => {
    expect(chosen(['q_proj', 'nope'], { excludeModules: ['k_proj'] }).warned).toEqual([['nope'], ['k_proj']]);
    expect(chosen(['q_proj']).warned).toEqual([]);
  });

  it('that hit nothing are an error with the three nearest names, and say what was taken out', () => {
    const failure = (targets: TargetModules, options?: TargetOptions): NotFoundError => {
      try {
        chosen(targets, options);
      } catch (error) {
        if (error instanceof NotFoundError) return error;
        throw error;
      }
      throw new Error('something was found');
    };
    const { message, details, help } = failure(['qproj']);
    expect(message).toContain("'qproj' match nothing");
    expect((details['nearest'] as string[])[0]).toBe('q_proj');
    expect(details['nearest']).toHaveLength(3);
    expect(help).toContain('q_proj');
    expect(failure(['q_proj'], { excludeModules: ['q_proj'] }).details).toMatchObject({ excludeModules: ['q_proj'] });
    expect(failure(['v_proj'], { layersToTransform: [7] }).details).toMatchObject({ layersToTransform: [7] });
  });

  it('refuse layers beside a pattern, and patterns that are none', () => {
    expect(() => chosen('.*q_proj', { layersToTransform: [1] })).toThrow(ConfigError);
    expect(() => chosen('.*q_proj', { layersToTransform: [1] })).toThrow(/layersToTransform/);
    expect(() => chosen('(q')).toThrow(FormatError);
  });
});

describe('the layer of a path', () => {
  it('is the first number behind a container, or behind the one that is named', () => {
    expect(layerOf('model.layers.3.mlp.experts.5.up_proj')).toBe(3);
    expect(layerOf('model.layers.3.mlp.experts.5.up_proj', 'experts')).toBe(5);
    expect(layerOf('transformer.h.11.attn.c_attn', ['layers', 'h'])).toBe(11);
    expect(layerOf('model.norm')).toBeUndefined();
    expect(layerOf('model.layers.3.mlp', 'blocks')).toBeUndefined();
  });
});

describe('what a family targets where nothing is said', () => {
  it.each([
    ...['llama', 'mistral', 'qwen2', 'qwen3', 'mixtral', 'opt'].map((family) => [family, ['q_proj', 'v_proj']] as const),
    ['gpt2', ['c_attn']] as const,
    ...['bert', 'roberta'].map((family) => [family, ['query', 'value']] as const),
  ])('%s: %j', (family, targets) => expect(defaultTargetsOf(family)).toEqual(targets));

  it('is an error of a family that has none', () => {
    for (const family of ['vit', 'toString', undefined]) expect(() => defaultTargetsOf(family)).toThrow(ConfigError);
    expect(() => defaultTargetsOf('vit')).toThrow(/'vit' have no default target modules/);
  });
});
