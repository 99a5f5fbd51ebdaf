import { describe, expect, it } from 'vitest';
import { createStep, type Step } from '@niwaki/engine';
import { createDraw, memory, openMemoryLedger, type MemoryLedger } from '@niwaki/tensor';
import { encodeGgufBlocks, ggufBlock, rowsOf, type GgufEncoded } from '@niwaki/weights';
import {
  adamw,
  adapt,
  agedAdamw,
  blockwiseBackprop,
  bottleneck,
  causalLM,
  compacter,
  disposeBatch,
  dora,
  evaluateBatch,
  frugal,
  galore,
  ia3,
  int8Weights,
  languageBatch,
  lion,
  lisa,
  lnTuning,
  lora,
  nf4,
  prefixTuning,
  promptTuning,
  qGalore,
  qst,
  quantize,
  rtn,
  s2ft,
  sm3,
  spiel,
  spielParticipant,
  type AdapterMethod,
  type AdapterSet,
  type Batch,
  type CommitMode,
  type Estimator,
  type Model,
  type Objective,
  type Parameter,
  type Participant,
  type Selector,
  type Transform,
} from '../src/index.ts';
import { sizeOf } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import {
  formats,
  methodRows,
  modelEntries,
  runBytes,
  weightBytesOf,
  type Bounds,
  type FormatName,
  type MethodName,
  type MethodRow,
  type ModelShape,
  type RunBytes,
  type Settings,
} from './memory-formulas.ts';

// docs/generated/memory.md, and that every formula in it gives the bytes that a run really holds, at two shapes.
// `node scripts/memory-table.mjs` writes it.

const learningRate = 1e-3;

/** How the linear maps of a float model come to a format; embeddings and head as `load` keeps half-precision ones. */
const stores: Readonly<Record<FormatName, (model: Model) => Promise<void>>> = {
  f32: async () => {},
  f16: (model) => inBlocks(model, 'F16', 'linear'),
  nf4: (model) => inHalf(model, () => quantize(model, nf4({ doubleQuant: false }))),
  nf4Double: (model) => inHalf(model, () => quantize(model, nf4({ doubleQuant: true }))),
  int4: (model) => inHalf(model, () => quantize(model, rtn({ bits: 4, groupSize: 64 }))),
  int4Symmetric: (model) => inHalf(model, () => quantize(model, rtn({ bits: 4, groupSize: 64, symmetric: true }))),
  q4_1: (model) => inBlocks(model, 'Q4_1', 'linear'),
  int8Trained: async (model) => void (await quantize(model, int8Weights())),
};

async function inBlocks(model: Model, format: GgufEncoded, point: 'linear' | 'tables'): Promise<void> {
  for (const { path, weight, tiedTo, ...site } of model.sites(() => true)) {
    if (weight === undefined || tiedTo !== undefined || (site.point === 'linear') !== (point === 'linear')) continue;
    model.replace(path, ggufBlock(path, weight.shape, format, await encodeGgufBlocks(path, weight.shape, rowsOf(weight), format)));
  }
  if (point === 'linear') await inBlocks(model, 'F16', 'tables');
}

async function inHalf(model: Model, store: () => Promise<unknown>): Promise<void> {
  await store();
  await inBlocks(model, 'F16', 'tables');
}

interface Run {
  readonly optimizer: Transform;
  readonly adapter?: readonly [method: AdapterMethod, at: Selector];
  readonly participant?: (set: AdapterSet | undefined) => Participant;
}

const adam = (): Transform => adamw({ learningRate });
const onLinears = (method: AdapterMethod, optimizer = adam()): Run => ({ adapter: [method, 'all-linear'], optimizer });
const afterSublayers = (method: AdapterMethod): Run => ({ adapter: [method, ['**.self_attn', '**.mlp']], optimizer: adam() });

/** How each row of the table is run. */
const runs: Readonly<Record<MethodName, (settings: Settings) => Run>> = {
  adamw: () => ({ optimizer: adam() }),
  adamw8: () => ({ optimizer: adamw({ learningRate, state: '8bit' }) }),
  lion: () => ({ optimizer: lion({ learningRate }) }),
  sm3: () => ({ optimizer: sm3({ learningRate }) }),
  frugal: ({ frugal: density }) => ({ optimizer: frugal({ learningRate, density }) }),
  lisa: ({ lisa: active }) => ({ optimizer: adam(), participant: () => lisa({ active }) }),
  galore: ({ galore: rank }) => ({ optimizer: galore({ learningRate, rank, state: '8bit' }) }),
  qGalore: ({ galore: rank }) => ({ optimizer: qGalore({ learningRate, rank }) }),
  lora: ({ lora: rank }) => onLinears(lora({ rank })),
  qlora: ({ lora: rank }) => onLinears(lora({ rank })),
  qlora8: ({ lora: rank }) => onLinears(lora({ rank }), adamw({ learningRate, state: '8bit' })),
  dora: ({ lora: rank }) => onLinears(dora({ rank })),
  spiel: ({ spiel: density }) => ({
    ...onLinears(spiel({ density }), agedAdamw({ learningRate })),
    participant: (set) => spielParticipant(set!),
  }),
  s2ft: ({ s2ft: ratios }) => ({ adapter: [s2ft(ratios), ['o_proj', 'down_proj']], optimizer: adam() }),
  bottleneck: ({ bottleneck: reduction }) => afterSublayers(bottleneck({ reduction })),
  compacter: ({ compacter: sizes }) => afterSublayers(compacter(sizes)),
  qst: ({ qst: reduction }) => ({ adapter: [qst({ reduction }), '**'], optimizer: adam() }),
  ia3: () => ({ adapter: [ia3(), ['k_proj', 'v_proj', 'down_proj']], optimizer: adam() }),
  lnTuning: () => ({ adapter: [lnTuning(), ['input_layernorm', 'post_attention_layernorm', 'norm']], optimizer: adam() }),
  prefix: ({ prefix: virtualTokens }) => ({ adapter: [prefixTuning({ virtualTokens }), '**.self_attn'], optimizer: adam() }),
  prompt: ({ prompt: virtualTokens }) => ({ adapter: [promptTuning({ virtualTokens }), 'embed_tokens'], optimizer: adam() }),
};

/** Sides unlike one another, matrices on both sides of what 8-bit state begins at, groups that do not fill a block. */
const shapes: Readonly<Record<string, ModelShape>> = {
  'two layers, a head of its own': {
    layers: 2,
    width: 64,
    mlpWidth: 192,
    heads: 4,
    kvHeads: 2,
    headSize: 16,
    vocabulary: 97,
    tied: false,
  },
  'one layer, tied, heads wider than the model': {
    layers: 1,
    width: 64,
    mlpWidth: 128,
    heads: 2,
    kvHeads: 1,
    headSize: 64,
    vocabulary: 61,
    tied: true,
  },
};
const small: Settings = {
  lora: 6,
  galore: 24,
  frugal: 0.3,
  lisa: 1,
  bottleneck: 4,
  compacter: { reduction: 8, division: 4 },
  qst: 2,
  spiel: 0.01,
  s2ft: { outputRatio: 0.5, downRatio: 0.05 },
  prefix: 5,
  prompt: 5,
};

const configOf = ({ layers, width, mlpWidth, heads, kvHeads, headSize, vocabulary, tied }: ModelShape): Record<string, unknown> => ({
  vocab_size: vocabulary,
  hidden_size: width,
  intermediate_size: mlpWidth,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  head_dim: headSize,
  tie_word_embeddings: tied,
});

const bytesOf = (parameters: Iterable<Parameter>): number =>
  [...new Set(parameters)].reduce((sum, parameter) => sum + parameter.bytes(), 0);

/** Of a model in a format, measured; and no tensor is left of it. */
async function expectStored(
  shape: ModelShape,
  format: FormatName,
  test: (model: Model, ledger: MemoryLedger) => Promise<void>,
  { trainable = false } = {},
): Promise<void> {
  const before = memory().numTensors;
  const ledger = openMemoryLedger();
  const empty = ledger.bytes();
  const model = await tinyLlama(configOf(shape), { trainable });
  try {
    await stores[format](model);
    const held = ledger.bytes() - empty;
    expect(held).toBe(weightBytesOf(shape, format));
    expect(held).toBe(bytesOf(model.parameters().values()));
    await test(model, ledger);
  } finally {
    model.dispose();
    ledger.dispose();
  }
  expect(memory().numTensors).toBe(before);
}

function expectWithin(bytes: number, [least, most]: Bounds): void {
  expect(bytes).toBeGreaterThanOrEqual(least);
  expect(bytes).toBeLessThanOrEqual(most);
}

type Measured = Pick<RunBytes, 'gradients' | 'kept' | 'state'>;

/** A step's state, what it holds where its forward pass ends, and all gradients it gives. */
async function measured(step: (objective: Objective, estimator: Estimator) => Step, batch: Batch, ledger: MemoryLedger): Promise<Measured> {
  let [before, kept, gradients] = [0, 0, 0];
  const objective: Objective = {
    ...causalLM(),
    rows: (given) => {
      kept = ledger.bytes() - before;
      return causalLM().rows(given);
    },
  };
  const backprop = blockwiseBackprop();
  const estimator: Estimator = {
    ...backprop,
    estimate: (turn, sink) => {
      before = ledger.bytes();
      return backprop.estimate(turn, {
        push: (parameter, gradient) => {
          if (gradient.kind === 'dense') gradients += 4 * sizeOf(gradient.value.shape);
          sink.push(parameter, gradient);
        },
      });
    },
  };
  const made = step(objective, estimator);
  try {
    await advance(made, batch);
    return { kept, gradients, state: made.stateBytes() };
  } finally {
    made.dispose();
  }
}

async function advance(step: Step, batch: Batch): Promise<void> {
  const { applied } = await step.run({ batches: [batch], attempt: 0, rate: learningRate, progress: 0, steps: 40, draw: createDraw(1, 0) });
  expect(applied).toBe(true);
}

describe.each(Object.entries(shapes))('%s', (_, shape) => {
  it('has as many parameters as its shape says', async () => {
    const model = await tinyLlama(configOf(shape));
    const count = [...new Set(model.parameters().values())].reduce((sum, parameter) => sum + sizeOf(parameter.shape), 0);
    expect(modelEntries(shape).reduce((sum, entry) => sum + sizeOf(entry.shape), 0)).toBe(count);
    model.dispose();
  });

  it.each(Object.keys(formats) as FormatName[])('stored as %s it holds the bytes of the formula', (format) =>
    expectStored(shape, format, async () => {}),
  );

  it.each(Object.keys(methodRows) as MethodName[])('%s holds the bytes of the formulas', (name) => {
    const row: MethodRow = methodRows[name];
    const time = 7;
    const expected = runBytes(name, shape, small, { batch: 2, time });
    const { optimizer, adapter: put, participant } = runs[name](small);
    return expectStored(
      shape,
      row.base,
      async (model, ledger) => {
        const atBase = ledger.bytes();
        const set = put && (await adapt(model, put[0], { at: put[1] }));
        const ids = Array.from({ length: time }, (__, i) => 3 * i + 1);
        const atAdapter = ledger.bytes();
        const batch = languageBatch([{ ids }, { ids: ids.map((id) => id + 20) }], model.info);
        const inBatch = ledger.bytes() - atAdapter;
        const stepOf =
          (commit: CommitMode) =>
          (objective: Objective, estimator: Estimator): Step =>
            createStep({ model, objective, optimizer, estimator, commit, ...(participant && { participants: [participant(set)] }) });
        // From the first forward on, what an adapter knows of its base has a buffer of its own.
        await evaluateBatch(model, batch, causalLM());
        const found = await measured(stepOf('step'), batch, ledger);
        expect(found).toEqual({ gradients: expected.gradients, kept: expected.kept, state: expected.state });
        // Copies share a buffer with what they are of until they are trained.
        const adapter = ledger.bytes() - atBase - inBatch;
        const own = [
          ...[...(set?.sites.values() ?? [])].flatMap(({ parameters }) => Object.values(parameters)),
          ...(set?.replaced.values() ?? []),
        ];
        expect(adapter).toBe(bytesOf(own));
        expectWithin(adapter, expected.adapter);
        const eager = stepOf('eager')(causalLM(), blockwiseBackprop());
        // The step refuses to hold more than its plan allows.
        await advance(eager, batch);
        expectWithin(eager.plan.peakBytes, expected.eagerGradients);
        expect(eager.stateBytes()).toBe(expected.state);
        expect(ledger.bytes() - atBase - inBatch).toBe(adapter + expected.state + expected.aside);
        eager.dispose();
        disposeBatch(batch);
      },
      { trainable: row.inPlace ?? false },
    );
  });
});

// The table

const models = {
  'SmolLM2-135M': { layers: 30, width: 576, mlpWidth: 1536, heads: 9, kvHeads: 3, headSize: 64, vocabulary: 49152, tied: true },
  'Llama-3.2-1B': { layers: 16, width: 2048, mlpWidth: 8192, heads: 32, kvHeads: 8, headSize: 64, vocabulary: 128256, tied: true },
  'Llama-3-8B': { layers: 32, width: 4096, mlpWidth: 14336, heads: 32, kvHeads: 8, headSize: 128, vocabulary: 128256, tied: false },
} as const satisfies Readonly<Record<string, ModelShape>>;
/** As published. */
const parameterCounts = { 'SmolLM2-135M': 134_515_008, 'Llama-3.2-1B': 1_235_814_400, 'Llama-3-8B': 8_030_261_248 } as const;

const usual: Settings = {
  lora: 16,
  galore: 128,
  frugal: 0.25,
  lisa: 2,
  bottleneck: 16,
  compacter: { reduction: 16, division: 4 },
  qst: 16,
  spiel: 0.01,
  s2ft: { outputRatio: 0.052, downRatio: 0.02 },
  prefix: 20,
  prompt: 20,
};
const rows = { batch: 1, time: 1024 };

const countOf = (shape: ModelShape): number => modelEntries(shape).reduce((sum, entry) => sum + sizeOf(entry.shape), 0);
const numbers = (count: number): string => count.toLocaleString('en-US');

/** Three digits, or a whole number of four. */
function inUnits(bytes: number): string {
  const power = [3, 2, 1].find((each) => bytes >= 1024 ** each) ?? 0;
  const value = bytes / 1024 ** power;
  return `${value >= 1000 || power === 0 ? Math.round(value) : value.toPrecision(3)} ${['B', 'KiB', 'MiB', 'GiB'][power]}`;
}

const atMost = ([least, most]: Bounds): string => (least === most ? '' : '≤ ') + inUnits(most);
const plus = (a: Bounds, b: Bounds): Bounds => [a[0] + b[0], a[1] + b[1]];
const exactly = (bytes: number): Bounds => [bytes, bytes];

const table = (head: readonly string[], body: readonly (readonly string[])[]): string =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...body.map((row) => `| ${row.join(' | ')} |`)].join('\n');

function line(name: MethodName, shape: ModelShape): string[] {
  const { weights, trained, adapter, gradients, eagerGradients, state, aside, kept } = runBytes(name, shape, usual, rows);
  const { title, base } = methodRows[name];
  const rest = plus(adapter, exactly(weights + state + aside + kept));
  return [
    title,
    formats[base].title,
    inUnits(weights),
    numbers(trained),
    adapter[1] === 0 ? '–' : atMost(adapter),
    inUnits(gradients),
    atMost(eagerGradients),
    inUnits(state + aside),
    inUnits(kept),
    atMost(plus(rest, exactly(gradients))),
    atMost(plus(rest, eagerGradients)),
  ];
}

it('docs/generated/memory.md says what the formulas say', async () => {
  const entries = Object.entries(models);
  expect(Object.fromEntries(entries.map(([name, shape]) => [name, countOf(shape)]))).toEqual(parameterCounts);
  const names = Object.keys(methodRows) as MethodName[];
  const head = [
    'Method',
    'Stored as',
    'Weights',
    'Trained numbers',
    'Adapter',
    'Gradients',
    'Gradients, eager',
    'State',
    'Kept',
    'Sum',
    'Sum, eager',
  ];
  const text = `<!-- Written by scripts/memory-table.mjs from formulas that a test holds against measured bytes. Do not edit. -->
# What fits

Bytes on the device, computed from the shapes of three models. Every formula is one that a test compares with a run: models
of two other shapes are stored, adapted and trained as each row says, and the buffers that are there, counted one by one, have
to come to the same number, to the byte. No model of this page was loaded for it.

## Weights

Linear maps in the format of the row. From \`${formats.f16.title}\` on, embeddings and head are in half precision, as \`load\` with
\`dtype: 'stored'\` leaves them; beside \`int8Weights\` they are in f32, where they train. Norms are f32.

${table(
  ['Stored as', ...entries.map(([name]) => name)],
  (Object.keys(formats) as FormatName[]).map((format) => [
    formats[format].title,
    ...entries.map(([, shape]) => inUnits(weightBytesOf(shape, format))),
  ]),
)}

## Training

One step on ${rows.batch} sequence of ${numbers(rows.time)} tokens, with blockwise backprop as it is by default. Adapters train over
any of the formats above: what changes is the weights.

- *Adapter*: what trains, for SpIEL and S²FT the places where it goes, for DoRA the norms of the rows. S²FT draws heads and channels, so that shapes alone
  say only what there is at most, of places and of gradients at once.
- *Gradients*: all of them, as \`commit: 'step'\` holds them. *Eager*: what the plan of \`commit: 'eager'\` allows; a step that holds more
  fails. Of a parameter that several blocks read that is a sum and what is added to it, so that a prefix gains nothing.
- *State*: the optimizer's. For SpIEL also what it knows of candidates in the steps before it chooses, 16 bytes an entry.
- *Kept*: hidden states and tables from the end of the forward pass on, until the backward pass has read them. They grow with the
  tokens, the other columns do not.
- *Sum*: of these, once with all gradients and once with the eager ones.

Not in here, since no formula gives it to the byte, is what comes and goes within a step: the one block that is computed again, a chunk
of logits (16 MiB, or a quarter of a head that trains; their gradient takes their place), the update of one parameter, a matrix that is decoded or
built for its product, and what a kernel needs within itself. Each step of \`train\` reports the peak that it measured.

LoRA and DoRA of rank ${usual.lora} at all linear maps; GaLore and Q-GaLore of rank ${usual.galore}; FRUGAL with Adam on ${100 * usual.frugal}% of each
matrix's columns; LISA with ${usual.lisa} active blocks; SpIEL with 1% of the model's entries; S²FT at \`o_proj\` and \`down_proj\` with its
default ratios; bottleneck adapters and Compacter with a reduction of ${usual.bottleneck} after attention and feed-forward, Compacter with
norms; QST with a reduction of ${usual.qst}; (IA)³ at \`k_proj\`, \`v_proj\` and \`down_proj\`; LN tuning at all norms; ${usual.prefix} virtual tokens.

${entries
  .map(
    ([name, shape]) =>
      `### ${name}\n\n${numbers(countOf(shape))} parameters.\n\n${table(
        head,
        names.map((method) => line(method, shape)),
      )}`,
  )
  .join('\n\n')}
`;
  await expect(text).toMatchFileSnapshot('../../../docs/generated/memory.md');
});
