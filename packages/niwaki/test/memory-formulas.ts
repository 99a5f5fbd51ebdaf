import { planGradients } from '../../engine/src/gradient-plan.ts';
import type { Route } from '../../engine/src/route.ts';

// Bytes from shapes alone: what docs/generated/memory.md says of models that no test can hold. Every formula here is held
// against measured bytes in memory-table.host.test.ts; one that is not has no place in the table.

/** A Llama by its sides. */
export interface ModelShape {
  readonly layers: number;
  readonly width: number;
  readonly mlpWidth: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly vocabulary: number;
  readonly tied: boolean;
}

/** Sizes that a user chooses, by the name of what they are for. */
export interface Settings {
  readonly lora: number;
  readonly galore: number;
  readonly frugal: number;
  readonly lisa: number;
  readonly bottleneck: number;
  readonly compacter: { readonly reduction: number; readonly division: number };
  readonly qst: number;
  readonly spiel: number;
  readonly s2ft: { readonly outputRatio: number; readonly downRatio: number };
  readonly prefix: number;
  readonly prompt: number;
}

export interface Rows {
  readonly batch: number;
  readonly time: number;
}

/** A parameter, and the stages that read it: 0 embeds, then the blocks, then the head. */
export interface Entry {
  readonly path: string;
  readonly shape: readonly number[];
  readonly role: 'matrix' | 'embedding' | 'head' | 'norm' | 'other';
  readonly stages: readonly number[];
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((product, side) => product * side, 1);
const sumOf = <T>(list: readonly T[], of: (item: T) => number): number => list.reduce((sum, item) => sum + of(item), 0);

/** A device's buffer holds whole words. */
const inWords = (bytes: number): number => 4 * Math.ceil(bytes / 4);

/** The seven linear maps of a block, [out, in]. */
function linears({ width, mlpWidth, heads, kvHeads, headSize }: Omit<ModelShape, 'vocabulary' | 'layers' | 'tied'>): readonly Named[] {
  const [queries, keys] = [heads * headSize, kvHeads * headSize];
  return [
    ['q_proj', [queries, width]],
    ['k_proj', [keys, width]],
    ['v_proj', [keys, width]],
    ['o_proj', [width, queries]],
    ['gate_proj', [mlpWidth, width]],
    ['up_proj', [mlpWidth, width]],
    ['down_proj', [width, mlpWidth]],
  ];
}
type Named = readonly [name: string, shape: readonly [out: number, in_: number]];

const headStage = ({ layers }: ModelShape): number => layers + 1;
const blocksOf = ({ layers }: ModelShape): readonly number[] => Array.from({ length: layers }, (_, layer) => layer + 1);

function blockEntries(shape: ModelShape, stage: number): readonly Entry[] {
  const norms = ['input_layernorm', 'post_attention_layernorm'];
  return [
    ...linears(shape).map(([name, sides]): Entry => ({ path: `${stage}.${name}`, shape: sides, role: 'matrix', stages: [stage] })),
    ...norms.map((name): Entry => ({ path: `${stage}.${name}`, shape: [shape.width], role: 'norm', stages: [stage] })),
  ];
}

/** Embedding, final norm and head: a tied matrix is one parameter that two stages read. */
function endEntries(shape: ModelShape): readonly Entry[] {
  const { vocabulary, width, tied } = shape;
  const head = headStage(shape);
  return [
    { path: 'embed_tokens', shape: [vocabulary, width], role: 'embedding', stages: tied ? [0, head] : [0] },
    { path: 'norm', shape: [width], role: 'norm', stages: [head] },
    ...(tied ? [] : [{ path: 'lm_head', shape: [vocabulary, width], role: 'head', stages: [head] } as const]),
  ];
}

/** All parameters of the model, before anything is done to it. */
export const modelEntries = (shape: ModelShape): readonly Entry[] => [
  ...endEntries(shape),
  ...blocksOf(shape).flatMap((stage) => blockEntries(shape, stage)),
];

// How matrices are stored

type Sides = readonly [out: number, in_: number];
export interface Format {
  readonly title: string;
  /** Bytes of a linear map. */
  readonly matrix: (shape: Sides) => number;
  /** Bytes of the embedding, and of the head where it is a matrix of its own. */
  readonly table: (shape: Sides) => number;
}

const f32 = (shape: readonly number[]): number => 4 * sizeOf(shape);
const f16 = (shape: readonly number[]): number => inWords(2 * sizeOf(shape));

/** 4-bit codes and an absmax a block of 64; the codebook is 16 floats a matrix, and the nested map 256 more and an offset. */
const nf4 =
  (nested: boolean) =>
  (shape: Sides): number => {
    const blocks = Math.ceil(sizeOf(shape) / 64);
    const absmax = nested ? inWords(blocks) + 4 * (256 + Math.ceil(blocks / 256) + 1) : 4 * blocks;
    return inWords(Math.ceil(sizeOf(shape) / 2)) + 4 * 16 + absmax;
  };

/** Codes, an f32 scale a group, and where `zeros` a byte a group. */
const integers =
  ({ bits, groupOf, zeros }: { bits: number; groupOf: (width: number) => number; zeros: boolean }) =>
  (shape: Sides): number => {
    const groups = sizeOf(shape) / groupOf(shape[1]);
    return inWords((sizeOf(shape) * bits) / 8) + 4 * groups + (zeros ? inWords(groups) : 0);
  };

/** What int8Weights takes: the largest multiple of 8 up to 256 that divides a row. */
function trainedGroup(width: number): number {
  let size = 8 * Math.floor(Math.min(256, width) / 8);
  while (width % size !== 0) size -= 8;
  return size;
}

export const formats = {
  f32: { title: 'f32', matrix: f32, table: f32 },
  f16: { title: 'f16', matrix: f16, table: f16 },
  nf4: { title: 'NF4', matrix: nf4(false), table: f16 },
  nf4Double: { title: 'NF4, double quantization', matrix: nf4(true), table: f16 },
  int4: { title: '4-bit integers, groups of 64', matrix: integers({ bits: 4, groupOf: () => 64, zeros: true }), table: f16 },
  int4Symmetric: {
    title: '4-bit integers, groups of 64, symmetric',
    matrix: integers({ bits: 4, groupOf: () => 64, zeros: false }),
    table: f16,
  },
  // Blocks of 32: a scale and a least value in half precision, 16 bytes of codes.
  q4_1: { title: 'GGUF Q4_1', matrix: (shape) => inWords((sizeOf(shape) / 32) * 20), table: f16 },
  int8Trained: { title: 'bytes that train (`int8Weights`)', matrix: integers({ bits: 8, groupOf: trainedGroup, zeros: true }), table: f32 },
} as const satisfies Readonly<Record<string, Format>>;
export type FormatName = keyof typeof formats;

/** Bytes of a model whose linear maps are stored in a format; norms are f32. */
export function weightBytesOf(shape: ModelShape, name: FormatName): number {
  const { matrix, table }: Format = formats[name];
  return sumOf(modelEntries(shape), ({ role, shape: sides }) => {
    if (role === 'matrix') return matrix(sides as Sides);
    return role === 'norm' ? f32(sides) : table(sides as Sides);
  });
}

// Optimizer state

type StateOf = (entry: Entry) => number;

const adam: StateOf = ({ shape }) => 8 * sizeOf(shape);

const lion: StateOf = ({ shape }) => 4 * sizeOf(shape);

/** A number a row and one a column; of a vector one an entry. */
const sm3: StateOf = ({ shape }) => 4 * shape.reduce((sum, side) => sum + side, 0);

/** Moments of some columns of each matrix, and which they are. */
const someColumns =
  (density: number): StateOf =>
  (entry) => {
    if (entry.role !== 'matrix') return adam(entry);
    const count = Math.floor(density * entry.shape[1]!);
    return 8 * entry.shape[0]! * count + 4 * count;
  };

/** Two moments of a byte an entry and a scale a block of 256; below 4096 entries f32. */
const adam8: StateOf = ({ shape }) => {
  const size = sizeOf(shape);
  return size < 4096 ? 8 * size : 2 * (inWords(size) + 4 * Math.ceil(size / 256));
};

/** Of a matrix: a basis of the shorter side, and moments of the longer one. */
const projected =
  (rank: number, basis: (side: number) => number): StateOf =>
  (entry) => {
    const sides = [...entry.shape].sort((a, b) => a - b);
    if (entry.role !== 'matrix' || rank >= sides[0]!) return adam8(entry);
    return basis(sides[0]!) + adam8({ ...entry, shape: [sides[1]!, rank] });
  };

/** The basis in 4 bits with a scale and a zero a group of 256, its first vector, and the last five likenesses. */
const codedBasis =
  (rank: number) =>
  (side: number): number =>
    inWords((side * rank) / 2) + 8 * Math.ceil((side * rank) / 256) + 4 * side + 4 * 5;

// What the backward pass needs of the forward one, between the stages

/** Cosines and sines of half a head, which every block reads; the bounds of a language batch are the batch's own. */
const tables = ({ headSize }: { headSize: number }, rows: number): number => 4 * rows * headSize;

/** The hidden state that enters each block and the head. */
const hidden = (shape: ModelShape, { batch, time }: Rows): number =>
  4 * batch * time * (shape.layers + 1) * shape.width + tables(shape, batch * time);

/** Prompts are rows of every stream but the last, which enters the head; bounds of their own are made. */
const hiddenWithPrompt =
  (count: number) =>
  (shape: ModelShape, { batch, time }: Rows): number =>
    hidden(shape, { batch, time: time + count }) + 8 * batch * (time + count) - 4 * batch * count * shape.width;

const sideOf = ({ width, mlpWidth, ...shape }: ModelShape, reduction: number): ModelShape => ({
  ...shape,
  width: width / reduction,
  mlpWidth: Math.floor(mlpWidth / reduction),
  headSize: width / reduction / shape.heads,
});

/** Beside the base's hidden states those of the side network, narrow copies of the base's, and tables of its own head size. */
const hiddenOfBoth =
  (reduction: number) =>
  (shape: ModelShape, rows: Rows): number => {
    const side = sideOf(shape, reduction);
    const count = rows.batch * rows.time;
    return hidden(shape, rows) + 4 * count * (2 * shape.layers + 1) * side.width + tables(side, count);
  };

// Methods

export interface Trained {
  readonly entries: readonly Entry[];
  /** Stages of the model with what the method adds, the head included; default the model's own. */
  readonly stages?: number;
  /** Bytes that an adapter holds and does not train: places. */
  readonly places?: number;
  /** What chooses entries keeps beside the optimizer. */
  readonly aside?: number;
  /** Chance spreads them over the model: one entry stands for all, and `places` is what there are at most. */
  readonly drawn?: boolean;
}

export interface MethodRow {
  readonly title: string;
  readonly base: FormatName;
  /** What trains is the model, not an adapter. */
  readonly inPlace?: boolean;
  readonly trained: (shape: ModelShape, settings: Settings) => Trained;
  readonly state: (settings: Settings) => StateOf;
  readonly kept?: (settings: Settings) => (shape: ModelShape, rows: Rows) => number;
}

const everything = (shape: ModelShape): Trained => ({ entries: modelEntries(shape) });

/** One or more tensors at each linear map of some names. */
function atLinears(
  shape: ModelShape,
  names: readonly string[],
  made: (sides: Sides, name: string) => readonly (readonly number[])[],
): Trained {
  const own = linears(shape).filter(([name]) => names.length === 0 || names.includes(name));
  return {
    entries: blocksOf(shape).flatMap((stage) =>
      own.flatMap(([name, sides]) =>
        made(sides, name).map((side, i): Entry => ({ path: `${stage}.${name}.${i}`, shape: side, role: 'other', stages: [stage] })),
      ),
    ),
  };
}

const loraEntries = (shape: ModelShape, rank: number): Trained =>
  atLinears(shape, [], ([out, width]) => [
    [rank, width],
    [out, rank],
  ]);

/** A magnitude a row too, and beside it a row's norm, which is known and not trained. */
function doraEntries(shape: ModelShape, rank: number): Trained {
  const { entries } = atLinears(shape, [], ([out, width]) => [[rank, width], [out, rank], [out]]);
  return { entries, places: 4 * shape.layers * sumOf(linears(shape), ([, [out]]) => out) };
}

/** After attention and after the feed-forward of each block. */
const afterSublayers = (shape: ModelShape, made: readonly (readonly number[])[]): readonly Entry[] =>
  blocksOf(shape).flatMap((stage) =>
    ['self_attn', 'mlp'].flatMap((name) =>
      made.map((side, i): Entry => ({ path: `${stage}.${name}.${i}`, shape: side, role: 'other', stages: [stage] })),
    ),
  );

function bottleneckEntries(shape: ModelShape, reduction: number): Trained {
  const { width } = shape;
  const inner = width / reduction;
  return { entries: afterSublayers(shape, [[inner, width], [inner], [width, inner], [width]]) };
}

/** Factors of rank 1 at each place, the matrices that all of them share, and copies of all norms. */
function compacterEntries(shape: ModelShape, { reduction, division }: Settings['compacter']): Trained {
  const { width } = shape;
  const inner = width / reduction;
  const factors = [[width], [inner], [inner], [inner], [width], [width]];
  return {
    entries: [
      { path: 'phm_rule', shape: [division, division, division], role: 'other', stages: blocksOf(shape) },
      ...afterSublayers(shape, factors),
      ...modelEntries(shape).filter(({ role }) => role === 'norm'),
    ],
  };
}

/** Each matrix gets its part of 1% of the model's parameters; a place is one word. Sums, their squares and the places of candidates. */
function spielEntries(shape: ModelShape, density: number): Trained {
  const total = Math.floor(density * sumOf(modelEntries(shape), ({ shape: own }) => sizeOf(own)));
  const all = shape.layers * sumOf(linears(shape), ([, sides]) => sizeOf(sides));
  const { entries } = atLinears(shape, [], (sides) => [[Math.floor((total * sizeOf(sides)) / all)]]);
  const count = sumOf(entries, ({ shape: own }) => sizeOf(own));
  return { entries, places: 4 * count, aside: 16 * count };
}

/** Heads and channels are drawn over all layers: how many of them fall on one is chance, and so is whether they are neighbors. */
function s2ftEntries({ layers, width, mlpWidth, heads, headSize }: ModelShape, { outputRatio, downRatio }: Settings['s2ft']): Trained {
  const columns = Math.floor(outputRatio * heads * layers) * headSize + Math.floor(downRatio * mlpWidth * layers);
  return {
    entries: [{ path: 's2ft', shape: [width, columns], role: 'other', stages: [1] }],
    places: 4 * (columns + layers * (heads * headSize + mlpWidth)),
    drawn: true,
  };
}

function lisaEntries(shape: ModelShape, active: number): Trained {
  const blocks = blocksOf(shape).slice(0, active);
  return { entries: [...endEntries(shape), ...blocks.flatMap((stage) => blockEntries(shape, stage))] };
}

/** Keys and values of all layers in one parameter, whose gradient is final after the first block. */
function prefixEntries(shape: ModelShape, count: number): Trained {
  const sides = [count, 2 * shape.layers * shape.kvHeads * shape.headSize];
  return { entries: [{ path: 'prefix', shape: sides, role: 'other', stages: blocksOf(shape) }] };
}

/** After the embedding a stage that narrows it with the first block's maps; after each block one that narrows and one that runs. */
function qstEntries(shape: ModelShape, reduction: number): Trained {
  const side = sideOf(shape, reduction);
  const [head, rank, { width }] = [2 + 3 * shape.layers, 16, side];
  const made = (stages: readonly number[], ...shapes: readonly (readonly number[])[]): Entry[] =>
    shapes.map((own, i): Entry => ({ path: `${stages.join()}.${i}`, shape: own, role: 'other', stages }));
  const layers = blocksOf(shape).flatMap((block, index) => {
    const narrow = 3 * block;
    const runs = linears(side).map(([, sides]) => sides);
    return [
      ...made(index === 0 ? [1, narrow] : [narrow], [rank, shape.width], [width, rank], [width], [width]),
      ...made([narrow + 1], [width], [width], [width], ...runs),
    ];
  });
  return { entries: [...layers, ...made([head], [width], [shape.width, width], [shape.width], [shape.width])], stages: head + 1 };
}

export const methodRows = {
  adamw: { title: 'everything, AdamW', base: 'f32', inPlace: true, trained: everything, state: () => adam },
  adamw8: { title: 'everything, AdamW in 8 bits', base: 'f32', inPlace: true, trained: everything, state: () => adam8 },
  lion: { title: 'everything, Lion', base: 'f32', inPlace: true, trained: everything, state: () => lion },
  sm3: { title: 'everything, SM3', base: 'f32', inPlace: true, trained: everything, state: () => sm3 },
  frugal: {
    title: 'FRUGAL, Adam and signSGD',
    base: 'f32',
    inPlace: true,
    trained: everything,
    state: ({ frugal: density }) => someColumns(density),
  },
  lisa: {
    title: 'LISA, AdamW',
    base: 'f32',
    inPlace: true,
    trained: (shape, { lisa }) => lisaEntries(shape, lisa),
    state: () => adam,
  },
  galore: {
    title: 'GaLore, Adam in 8 bits',
    base: 'f32',
    inPlace: true,
    trained: everything,
    state: ({ galore: rank }) => projected(rank, (side) => 4 * side * rank),
  },
  qGalore: {
    title: 'Q-GaLore',
    base: 'int8Trained',
    inPlace: true,
    trained: everything,
    state: ({ galore: rank }) => projected(rank, codedBasis(rank)),
  },
  lora: { title: 'LoRA, AdamW', base: 'f16', trained: (shape, { lora }) => loraEntries(shape, lora), state: () => adam },
  qlora: { title: 'LoRA, AdamW', base: 'nf4Double', trained: (shape, { lora }) => loraEntries(shape, lora), state: () => adam },
  qlora8: {
    title: 'LoRA, AdamW in 8 bits',
    base: 'nf4Double',
    trained: (shape, { lora }) => loraEntries(shape, lora),
    state: () => adam8,
  },
  dora: { title: 'DoRA, AdamW', base: 'nf4Double', trained: (shape, { lora }) => doraEntries(shape, lora), state: () => adam },
  spiel: {
    title: 'SpIEL, accumulated gradients',
    base: 'nf4Double',
    trained: (shape, { spiel }) => spielEntries(shape, spiel),
    // Two moments and an age.
    state:
      () =>
      ({ shape }) =>
        12 * sizeOf(shape),
  },
  s2ft: { title: 'S²FT, AdamW', base: 'nf4Double', trained: (shape, { s2ft }) => s2ftEntries(shape, s2ft), state: () => adam },
  bottleneck: {
    title: 'bottleneck adapters, AdamW',
    base: 'nf4Double',
    trained: (shape, { bottleneck }) => bottleneckEntries(shape, bottleneck),
    state: () => adam,
  },
  compacter: {
    title: 'Compacter, AdamW',
    base: 'nf4Double',
    trained: (shape, { compacter }) => compacterEntries(shape, compacter),
    state: () => adam,
  },
  qst: {
    title: 'QST, AdamW',
    base: 'nf4Double',
    trained: (shape, { qst }) => qstEntries(shape, qst),
    state: () => adam,
    kept: ({ qst }) => hiddenOfBoth(qst),
  },
  ia3: {
    title: '(IA)³, AdamW',
    base: 'nf4Double',
    trained: (shape) => atLinears(shape, ['k_proj', 'v_proj', 'down_proj'], ([out, width], name) => [[name === 'down_proj' ? width : out]]),
    state: () => adam,
  },
  lnTuning: {
    title: 'LN tuning, AdamW',
    base: 'nf4Double',
    trained: (shape) => ({ entries: modelEntries(shape).filter(({ role }) => role === 'norm') }),
    state: () => adam,
  },
  prefix: {
    title: 'prefix tuning, AdamW',
    base: 'nf4Double',
    trained: (shape, { prefix }) => prefixEntries(shape, prefix),
    state: () => adam,
  },
  prompt: {
    title: 'prompt tuning, AdamW',
    base: 'nf4Double',
    trained: ({ width }, { prompt }) => ({ entries: [{ path: 'prompt', shape: [prompt, width], role: 'other', stages: [0] }] }),
    state: () => adam,
    kept: ({ prompt }) => hiddenWithPrompt(prompt),
  },
} as const satisfies Readonly<Record<string, MethodRow>>;
export type MethodName = keyof typeof methodRows;

/** From least to most: the same twice where shapes alone say it. */
export type Bounds = readonly [least: number, most: number];

/** Bytes of one run; `trained` are numbers. */
export interface RunBytes {
  readonly weights: number;
  readonly trained: number;
  /** Of adapters: what trains, and places. */
  readonly adapter: Bounds;
  readonly gradients: number;
  /** With commit: 'eager'. */
  readonly eagerGradients: Bounds;
  readonly state: number;
  readonly aside: number;
  readonly kept: number;
}

/** What a run of a method holds between its pieces: the tape of the one block that is computed again comes on top. */
export function runBytes(name: MethodName, shape: ModelShape, settings: Settings, rows: Rows): RunBytes {
  const row: MethodRow = methodRows[name];
  const { entries, stages = headStage(shape) + 1, places = 0, aside = 0, drawn = false } = row.trained(shape, settings);
  const trained = sumOf(entries, ({ shape: own }) => sizeOf(own));
  const { peakBytes } = planGradients(routeOf(entries, stages), { commit: 'eager', measured: false });
  const adapter = row.inPlace ? 0 : 4 * trained;
  return {
    weights: weightBytesOf(shape, row.base),
    trained,
    adapter: [adapter + (drawn ? 0 : places), adapter + places],
    gradients: 4 * trained,
    eagerGradients: [drawn ? 0 : peakBytes, peakBytes],
    state: sumOf(entries, row.state(settings)),
    aside,
    kept: (row.kept?.(settings) ?? hidden)(shape, rows),
  };
}

/** As much of a route as a gradient plan asks for. */
const routeOf = (entries: readonly Entry[], count: number): Route => {
  const trained = Array.from({ length: count }, (_, stage) => entries.filter(({ stages }) => stages.includes(stage)));
  const uses = new Map(entries.map((entry) => [entry, entry.stages]));
  return { stages: trained.map((_, stage) => ({ path: String(stage) })), head: count - 1, trained, uses } as unknown as Route;
};
