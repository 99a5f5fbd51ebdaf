import { describe, expect, it } from 'vitest';
import { ConfigError } from '@niwaki/tensor';
import { readDecoderConfig, ropeFrequencies, type DecoderFamily, type HfConfig, type RopeConfig } from '@niwaki/nn';
import { hasShared, sharedJson } from '../../testing/src/shared.ts';

const sizes = { hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 16, vocab_size: 100, intermediate_size: 128 };
const read = (config: HfConfig, family: DecoderFamily = 'llama') => readDecoderConfig({ ...sizes, ...config }, family);

describe('what a field means where a file leaves it out', () => {
  it('is the llama family: as many kv heads as heads, head size by division, nothing slides', () => {
    expect(read({})).toMatchObject({
      kvHeads: 16,
      headSize: 4,
      eps: 1e-6,
      tied: false,
      headNorm: false,
      rope: { theta: 10_000, scaling: { type: 'default' } },
      biases: { qkv: false, output: false, mlp: false },
      windows: [undefined, undefined, undefined],
    });
    expect(read({ attention_bias: true, mlp_bias: true }).biases).toEqual({ qkv: true, output: true, mlp: true });
  });

  it('is the mistral family: 8 kv heads and a window of 4096, which null switches off', () => {
    expect(read({}, 'mistral')).toMatchObject({ kvHeads: 8, windows: [4096, 4096, 4096] });
    expect(read({ sliding_window: null }, 'mistral').windows).toEqual([undefined, undefined, undefined]);
  });

  it('is the qwen families: biases on q, k, v; windows from a layer on, and only where they are switched on', () => {
    expect(read({ num_key_value_heads: 4 }, 'qwen2').biases).toEqual({ qkv: true, output: false, mlp: false });
    expect(read({ sliding_window: 32 }, 'qwen2').windows).toEqual([undefined, undefined, undefined]);
    const sliding = { use_sliding_window: true, sliding_window: 32, max_window_layers: 1 };
    expect(read(sliding, 'qwen2').windows).toEqual([undefined, 32, 32]);
    expect(read({}, 'qwen3')).toMatchObject({ headSize: 128, headNorm: true, biases: { qkv: false, output: false, mlp: false } });
  });

  it('gives way to layer types where the file lists them', () => {
    const layer_types = ['sliding_attention', 'full_attention', 'sliding_attention'];
    expect(read({ layer_types, sliding_window: 5 }, 'qwen3').windows).toEqual([5, undefined, 5]);
    expect(() => read({ layer_types: ['full_attention'] })).toThrow(/layer_types must name 3 layers/);
    expect(() => read({ layer_types: ['chunked', 'chunked', 'chunked'] })).toThrow(/chunked/);
  });
});

describe('a config that cannot be', () => {
  it.each<[string, HfConfig, RegExp]>([
    ['a missing size', { hidden_size: undefined }, /hidden_size is missing/],
    ['a size that is text', { hidden_size: '64' }, /hidden_size must be a finite number, got "64"/],
    ['a fraction', { num_hidden_layers: 1.5 }, /whole number/],
    ['more layers than there can be', { num_hidden_layers: 2 ** 30 }, /num_hidden_layers must be a whole number from 1 to 10000/],
    ['a size beyond int32', { vocab_size: 2 ** 31 }, /vocab_size/],
    ['heads that the kv heads do not divide', { num_key_value_heads: 3 }, /must divide num_attention_heads = 16, got 3/],
    ['a head size that is odd', { head_dim: 5 }, /head_dim must be even/],
    ['a head size by division that is none', { hidden_size: 65 }, /head_dim/],
    ['an activation of another family', { hidden_act: 'gelu' }, /hidden_act.*'gelu'/],
    ['a flag that is text', { tie_word_embeddings: 'yes' }, /must be true or false/],
    ['an unknown stretch', { rope_scaling: { type: 'magic' } }, /'magic' is not known; known: default, linear/],
    ['a stretch without its factor', { rope_scaling: { type: 'linear' } }, /factor is missing/],
    ['a stretch that shrinks', { rope_scaling: { type: 'linear', factor: 0.5 } }, /at least 1/],
    ['a stretch that is a word', { rope_scaling: 'linear' }, /object of settings/],
    ['divisors of another size', { rope_scaling: { rope_type: 'longrope', short_factor: [1], long_factor: [1] } }, /head_dim \/ 2 = 2/],
    ['a partial rotation', { rope_parameters: { partial_rotary_factor: 0.5 } }, /partial_rotary_factor/],
  ])('%s names the field', (_, config, message) => {
    expect(() => read(config)).toThrow(ConfigError);
    expect(() => read(config)).toThrow(message);
  });
});

describe('old and new spellings', () => {
  it('of the rotary settings mean the same', () => {
    const factors = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 32 };
    const spellings: HfConfig[] = [
      { rope_theta: 500_000, rope_scaling: { rope_type: 'llama3', ...factors } },
      { rope_theta: 500_000, rope_scaling: { type: 'llama3', ...factors } },
      { rope_parameters: { rope_theta: 500_000, rope_type: 'llama3', ...factors } },
    ];
    const [first, ...others] = spellings.map((config) => read(config));
    expect(first!.rope).toEqual({ theta: 500_000, headSize: 4, scaling: { type: 'llama3', factor: 8, low: 1, high: 4, trained: 32 } });
    for (const other of others) expect(other).toEqual(first);
  });

  it.skipIf(!hasShared)('of a whole reference config mean the same', () => {
    const [old, fresh] = ['config.json', 'config.v5.json'].map((file) => sharedJson<HfConfig>(`golden/models/llama/${file}`));
    expect(readDecoderConfig(fresh!, 'llama')).toEqual(readDecoderConfig(old!, 'llama'));
  });
});

describe('rotary frequencies', () => {
  const rope = (scaling: RopeConfig['scaling'], headSize = 8): RopeConfig => ({ theta: 10_000, headSize, scaling });
  const plain = [1, 0.1, 0.01, 0.001];
  /** Largest relative difference from what was worked by hand. */
  const off = (values: ArrayLike<number>, expected: readonly number[]): number =>
    values.length === expected.length ? Math.max(...expected.map((value, i) => Math.abs(values[i]! / value - 1))) : Infinity;
  const rounding = 2e-5;

  it('fall by theta^(-2i/d)', () => expect(off(ropeFrequencies(rope({ type: 'default' }), 10).perPosition, plain)).toBeLessThan(rounding));

  it('are divided by 1, 7.6674, 8, 8 under the Llama 3 stretch of 8 over 64 positions', () => {
    const { perPosition } = ropeFrequencies(rope({ type: 'llama3', factor: 8, low: 1, high: 4, trained: 64 }), 10);
    expect(off(perPosition, [1, 0.1 / 7.6674, 0.01 / 8, 0.001 / 8])).toBeLessThan(rounding);
  });

  it('say the same as plain divisors, the form a GGUF file gives them in', () => {
    const divisors = [1, 7.6674, 8, 8];
    const listed = rope({ type: 'longrope', trained: 1000, short: divisors, long: divisors, attention: 1 });
    const named = ropeFrequencies(rope({ type: 'llama3', factor: 8, low: 1, high: 4, trained: 64 }), 101);
    expect(off(ropeFrequencies(listed, 101).perPosition, [...named.perPosition])).toBeLessThan(rounding);
  });

  it('are all divided under the linear stretch', () =>
    expect(
      off(
        ropeFrequencies(rope({ type: 'linear', factor: 4 }), 10).perPosition,
        plain.map((f) => f / 4),
      ),
    ).toBeLessThan(rounding));

  it('follow the length under the dynamic stretch, from the trained length on', () => {
    const dynamic = rope({ type: 'dynamic', factor: 2, trained: 8 });
    expect(off(ropeFrequencies(dynamic, 8).perPosition, plain)).toBeLessThan(rounding);
    expect(off(ropeFrequencies(dynamic, 3).perPosition, plain)).toBeLessThan(rounding);
    // At twice the trained length the base grows by (2·2 - 1)^(8/6).
    expect(
      off(
        ropeFrequencies(dynamic, 16).perPosition,
        plain.map((f, i) => f * 3 ** ((8 / 6) * ((-2 * i) / 8))),
      ),
    ).toBeLessThan(rounding);
  });

  it('ramp from kept to divided under yarn, and scale attention by 0.1 ln(factor) + 1', () => {
    const yarn = readDecoderConfig(
      { ...sizes, head_dim: 8, rope_scaling: { type: 'yarn', factor: 4, original_max_position_embeddings: 64 } },
      'llama',
    );
    const { perPosition, attention } = ropeFrequencies(yarn.rope, 10);
    // c(32) < 0 → 0; c(1) = 8 ln(64/2π) / (2 ln 10⁴) = 1.008 → 2: ramp 0, 1/2, 1, 1.
    expect(off(perPosition, [1, 0.1 / 8 + 0.1 / 2, 0.01 / 4, 0.001 / 4])).toBeLessThan(rounding);
    expect(attention).toBeCloseTo(0.1 * Math.log(4) + 1, 6);
  });

  it('change divisors beyond the trained length under longrope', () => {
    const long = rope({ type: 'longrope', trained: 64, short: [1, 1, 1, 1], long: [2, 2, 2, 2], attention: 1.1 });
    expect(off(ropeFrequencies(long, 64).perPosition, plain)).toBeLessThan(rounding);
    expect(
      off(
        ropeFrequencies(long, 65).perPosition,
        plain.map((f) => f / 2),
      ),
    ).toBeLessThan(rounding);
    expect(ropeFrequencies(long, 65).attention).toBe(1.1);
  });
});
