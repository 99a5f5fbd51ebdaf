import {
  activationModes,
  checkOptions,
  ConfigError,
  createDraw,
  dispose,
  ggufBlocks,
  integerMatMul,
  matMul,
  noise,
  packBytes,
  packedBytes,
  tensor1d,
  throwIfAborted,
  type Activations,
  type AffineBits,
  type GgufFormat,
  type PackedShape,
  type PackedTensors,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { lora } from '@niwaki/lowrank';
import { adapt } from '@niwaki/peft';
import { initializeModel } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { nf4, quantize } from '@niwaki/quant';

export interface SpeedOptions {
  /** Rows and columns of the matrices; a multiple of 256, default 2048. */
  readonly side?: number;
  /** Rows of x in the products of training; default 64. */
  readonly rows?: number;
  /** How long each product is repeated; default 150. */
  readonly milliseconds?: number;
  /** Fields of the trained model's config that differ: 4 layers of SmolLM2-135M, 8192 words. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** Tokens of a training step; default 128. */
  readonly tokens?: number;
  readonly signal?: AbortSignal;
}

export interface SpeedRow {
  /** 'training' (many rows of x), 'generation' (one) or 'LoRA step'. */
  readonly job: 'training' | 'generation' | 'LoRA step';
  /** How the matrices are stored, and of generation how x meets them. */
  readonly format: string;
  readonly activations?: Activations;
  readonly value: number;
  readonly unit: 'GFLOP/s' | 'tokens/s';
}

/** Bytes of matrices that one row is multiplied with in turn: more than caches hold, as in a model. */
const rotatedBytes = 64 * 2 ** 20;

const config = {
  model_type: 'llama',
  vocab_size: 8192,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 4,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-5,
  rope_theta: 100_000,
  tie_word_embeddings: true,
};

/**
 * How fast the current device is: products of each format with many rows of x and with one, and steps of LoRA on an NF4
 * base, row by row as they are measured. Random numbers; up to 100 MB of tensors at a time, none of them after it.
 * @example
 * for await (const { job, format, value, unit } of measureSpeed()) show(`${job}, ${format}: ${value.toFixed(1)} ${unit}`);
 */
export async function* measureSpeed(options: SpeedOptions = {}): AsyncGenerator<SpeedRow, void> {
  checkOptions('measureSpeed', options, ['side', 'rows', 'milliseconds', 'config', 'tokens', 'signal']);
  const { side = 2048, rows = 64, milliseconds = 150, tokens = 128, signal } = options;
  check({ side, rows, milliseconds, tokens });
  const time = (x: Tensor2D, matrices: readonly Matrix[], activations: Activations): Promise<number> =>
    secondsPerCall((turn) => matrices[turn % matrices.length]!.multiply(x, activations), { milliseconds, signal });
  const speed = (height: number, seconds: number): number => (2 * height * side * side) / seconds / 1e9;
  const many = noise([rows, side], createDraw(1, 0).at('speed#many'), 'gaussian') as Tensor2D;
  const one = noise([1, side], createDraw(1, 0).at('speed#one'), 'gaussian') as Tensor2D;
  try {
    for (const [format, make] of Object.entries(makers)) {
      const matrices = [make(side)];
      try {
        yield { job: 'training', format, value: speed(rows, await time(many, matrices, 'exact')), unit: 'GFLOP/s' };
        while (matrices.length * matrices[0]!.bytes < rotatedBytes && matrices.length < 32) matrices.push(make(side));
        for (const activations of matrices[0]!.rounds ? activationModes : (['exact'] as const)) {
          const value = speed(1, await time(one, matrices, activations));
          yield { job: 'generation', format, activations, value, unit: 'GFLOP/s' };
        }
      } finally {
        for (const matrix of matrices) matrix.dispose();
      }
    }
  } finally {
    dispose([many, one]);
  }
  yield { job: 'LoRA step', format: 'nf4', value: await loraTokensPerSecond(tokens, options), unit: 'tokens/s' };
}

function check({ side, ...counts }: { side: number; rows: number; milliseconds: number; tokens: number }): void {
  if (!(side > 0 && side % 256 === 0)) throw new ConfigError(`measureSpeed: side must be a multiple of 256, got ${side}`, { side });
  for (const [name, value] of Object.entries(counts)) {
    if (!(Number.isInteger(value) && value > 0))
      throw new ConfigError(`measureSpeed: ${name} must be a whole number of at least 1, got ${value}`, { [name]: value });
  }
}

interface Matrix {
  readonly bytes: number;
  /** x may be rounded. */
  readonly rounds: boolean;
  multiply(x: Tensor2D, activations: Activations): Tensor;
  dispose(): void;
}

const makers: Readonly<Record<string, (side: number) => Matrix>> = {
  f32: (side) => {
    const dense = noise([side, side], createDraw(1, 0).at('speed#dense'), 'gaussian') as Tensor2D;
    return { bytes: 4 * side ** 2, rounds: false, multiply: (x) => matMul(x, dense, false, true), dispose: () => dense.dispose() };
  },
  nf4: (side) =>
    packed(
      { format: 'codebook4', out: side, in: side, blockSize: 64 },
      {
        codes: bytes(side ** 2 / 2),
        codebook: tensor1d(Float32Array.from({ length: 16 }, (_, i) => (i - 7.5) / 7.5)),
        absmax: scales(side ** 2 / 64),
      },
    ),
  int4: (side) => affine(side, 4),
  int8: (side) => affine(side, 8),
  Q4_0: (side) => gguf('Q4_0', side),
  Q4_1: (side) => gguf('Q4_1', side),
  Q8_0: (side) => gguf('Q8_0', side),
  Q4_K: (side) => gguf('Q4_K', side),
  Q6_K: (side) => gguf('Q6_K', side),
};

function packed(shape: PackedShape, parts: PackedTensors): Matrix {
  const tensors = Object.values(parts) as Tensor[];
  return {
    bytes: tensors.reduce((sum, { size }) => sum + 4 * size, 0),
    rounds: true,
    multiply: (x, activations) => integerMatMul(x, parts, shape, { activations }),
    dispose: () => dispose(tensors),
  };
}

const affine = (side: number, bits: AffineBits): Matrix =>
  packed(
    { format: 'affine', bits, out: side, in: side, blockSize: 64 },
    {
      codes: bytes(packedBytes(side ** 2, bits)),
      scales: scales(side ** 2 / 64),
      zeros: packBytes(new Uint8Array(side ** 2 / 64).fill(7)),
    },
  );

/** Byte offsets of the halves in a block: random bits would make some of them infinite. */
const halves: Readonly<Partial<Record<GgufFormat, readonly number[]>>> = { Q4_0: [0], Q4_1: [0, 2], Q8_0: [0], Q4_K: [0, 2], Q6_K: [208] };

function gguf(format: GgufFormat, side: number): Matrix {
  const { elements, bytes: size } = ggufBlocks[format];
  const blocks = randomBytes((side ** 2 / elements) * size);
  // The upper byte of 2^-7 in half precision.
  for (let at = 0; at < blocks.length; at += size) for (const half of halves[format]!) blocks[at + half + 1] = 0x20;
  return packed({ format, out: side, in: side, blockSize: elements }, { blocks: packBytes(blocks) });
}

function randomBytes(length: number): Uint8Array {
  let state = 1;
  return new Uint8Array(length).map(() => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24);
}

const bytes = (length: number): Tensor => packBytes(randomBytes(length));
const scales = (length: number): Tensor => tensor1d(new Float32Array(length).fill(1 / 128));

/** The best of ten times, each of as many calls as take a tenth of `milliseconds`, the last result read back. */
async function secondsPerCall(
  call: (turn: number) => Tensor,
  { milliseconds, signal }: { milliseconds: number; signal: AbortSignal | undefined },
): Promise<number> {
  let turn = 0;
  const timed = async (calls: number): Promise<number> => {
    throwIfAborted(signal, 'measuring');
    const started = performance.now();
    for (let i = 1; i < calls; i++) call(turn++).dispose();
    const last = call(turn++);
    await last.data();
    last.dispose();
    return performance.now() - started;
  };
  let calls = 1;
  // The first ones compile.
  while ((await timed(calls)) < milliseconds / 10) calls *= 2;
  let best = Infinity;
  for (let round = 0; round < 10; round++) best = Math.min(best, await timed(calls));
  return best / calls / 1000;
}

async function loraTokensPerSecond(tokens: number, { signal, config: changes }: SpeedOptions): Promise<number> {
  const shape = { ...config, ...changes };
  const model = await initializeModel(shape, { seed: 1, trainable: false });
  try {
    await quantize(model, nf4());
    await adapt(model, lora({ rank: 8, alpha: 16 }), { at: 'all-linear', seed: 1 });
    const row = Array.from({ length: tokens + 1 }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 0) % shape.vocab_size);
    const batch = languageBatch([{ ids: row.slice(0, -1), targets: row.slice(1) }], { vocabularySize: shape.vocab_size });
    const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 2e-4 }) });
    try {
      let best = Infinity;
      for (let attempt = 0; attempt < 4; attempt++) {
        throwIfAborted(signal, 'measuring');
        const started = performance.now();
        await step.run({ batches: [batch], attempt, rate: 2e-4, progress: 0, draw: createDraw(1, attempt) });
        if (attempt > 0) best = Math.min(best, (performance.now() - started) / 1000);
      }
      return tokens / best;
    } finally {
      step.dispose();
      disposeBatch(batch);
    }
  } finally {
    model.dispose();
  }
}
