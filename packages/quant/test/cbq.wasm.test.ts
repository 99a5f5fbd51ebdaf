import { describe, expect, it } from 'vitest';
import {
  AbortError,
  ConfigError,
  createDraw,
  denseParameter,
  gradientsOf,
  add,
  keep,
  matMul,
  memory,
  mul,
  noise,
  openMemoryLedger,
  scalar,
  square,
  sub,
  sum,
  tensor2d,
  tidy,
  zeros,
  type Scalar,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { initializeModel, tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { disposeBatch, type FitProgress, type Method } from '@niwaki/engine';
import { adamw } from '@niwaki/optim';
import { affineStep, createCall, denseWeight, disposeWeight, fakeQuant, type FakeQuant, type FakeQuantParts } from '@niwaki/weights';
import { cbq, quantize, rtn } from '../src/index.ts';
import { channelScales, hiddenDistance, type CbqOptions } from '../src/cbq.ts';
import { splitOutliers } from '../src/outliers.ts';
import { logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig as config, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';

const build = (layers = 2): Promise<Model> => initializeModel({ ...config, num_hidden_layers: layers }, { seed: 1, trainable: false });
const sequences = calibrationSequences(4, 24);
const batchesOf = (): TokenBatch[] => sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));
const codesOf = async (model: Model, path: string): Promise<number[]> => [
  ...(await model.sites(path)[0]!.weight!.parts['qweight']!.raw()).bytes,
];

describe('outliers', () => {
  const small = [0.1, 0.12, 0.15, 0.2, 0.22, 0.25, 0.27, 0.3, 0.33, 0.36];

  it('are what lies beyond a wide gap over the quartiles', () => {
    const { threshold, bound, scores } = splitOutliers(Float32Array.from([...small, 0.9, 1, 4, 5]))!;
    expect(threshold).toBeCloseTo(1.605, 6);
    expect(scores).toHaveLength(2);
    expect(scores[0]).toBeCloseTo(9, 5);
    expect(scores[1]).toBeCloseTo(1, 5);
    expect(bound).toBe(1);
  });

  it('spare candidates that stand close together', () => {
    const { threshold, bound, scores } = splitOutliers(Float32Array.from([6, ...small, 0.4, 0.42, 1, 1.05, 1.1]))!;
    expect(threshold).toBeCloseTo(1.09, 5);
    expect(scores[0]).toBeCloseTo(0.0025, 5);
    expect(scores[1]).toBeCloseTo(24.01, 4);
    expect(bound).toBeCloseTo(1.1, 6);
  });

  it('are none where nothing stands out', () => {
    expect(splitOutliers(Float32Array.from(small))).toBeUndefined();
    expect(splitOutliers(new Float32Array(8).fill(2))).toBeUndefined();
  });
});

describe('the distance of hidden rows', () => {
  it('is the square and the divergence of their softmax, over the rows that count', async () => {
    const [y, z, mask] = [
      tensor2d([
        [1, 2],
        [9, 9],
      ]),
      tensor2d([
        [1.5, 1],
        [-7, 4],
      ]),
      tensor2d([[1], [0]]),
    ];
    const value = async (divergence: number): Promise<number> => {
      const distance = tidy(() => hiddenDistance(y, z, { divergence, rows: { count: 1, mask } }));
      const [number] = await distance.data();
      distance.dispose();
      return number!;
    };
    expect(await value(0)).toBeCloseTo(1.25, 6);
    expect(await value(1)).toBeCloseTo(1.25 + 0.257403, 5);
    for (const t of [y, z, mask]) t.dispose();
  });
});

/** y = W x on correlated inputs, at 2 bits a row: mean square of what is lost once the rounding is decided. */
async function layerError(rank: number | 'full' | 'none'): Promise<number> {
  const [out, width] = [64, 96];
  const normal = (name: string, shape: [number, number]): Tensor2D => noise(shape, createDraw(4, 0).at(name), 'gaussian') as Tensor2D;
  const x = tidy(() => matMul(normal('x', [64, width]), mul(normal('mix', [width, width]), width ** -0.5) as Tensor2D)) as Tensor2D;
  const base = denseWeight(denseParameter('m.weight', normal('w', [out, width]), { role: 'matrix' }));
  const values = await base.matrix!.read().data();
  const steps = Array.from({ length: out }, (_, row) =>
    affineStep(values, [row * width, (row + 1) * width], { bits: 2, grid: 'asymmetric' }),
  );
  const rounding: FakeQuantParts['rounding'] =
    typeof rank !== 'number'
      ? (zeros([out, width]) as Tensor2D)
      : { a: tidy(() => mul(normal('a', [out, rank]), rank ** -0.5)) as Tensor2D, b: zeros([rank, width]) as Tensor2D };
  const weight = fakeQuant(
    'm',
    base,
    { scales: Float32Array.from(steps, ({ scale }) => scale), zeros: Uint8Array.from(steps, ({ zero }) => zero), rounding },
    { bits: 2, groupSize: width, grid: 'asymmetric' },
  );
  const y = tidy(() => matMul(x, base.dense(), false, true)) as Tensor2D;
  if (rank !== 'none') await decideRounding(weight, { x, y, steps: 90, learningRate: 0.5, decide: 0.6 });
  const settled = await weight.settle();
  const error = tidy(() => {
    const lost = sub(settled.apply(x, createCall({ batch: {} })), y);
    return sum(square(lost)).dataSync()[0]! / lost.size;
  });
  disposeWeight(settled);
  disposeWeight(weight);
  x.dispose();
  y.dispose();
  return error;
}

interface LayerFit {
  readonly x: Tensor2D;
  readonly y: Tensor2D;
  readonly steps: number;
  readonly learningRate: number;
  readonly decide: number;
}

/** Adam on the mean square error of one map and the deciding term, which sharpens from 20 to 2. */
async function decideRounding(weight: FakeQuant, { x, y, steps, learningRate, decide }: LayerFit): Promise<void> {
  const parameters = Object.values(weight.parts).filter(({ role }) => role === 'factor');
  const optimizer = adamw({ learningRate, weightDecay: 0 });
  const one = scalar(1);
  const states = new Map(parameters.map((parameter) => [parameter, optimizer.init(parameter)]));
  for (let step = 0; step < steps; step++) {
    const progress = step / steps;
    const watched = new Map(parameters.map((parameter) => [parameter, parameter.read()]));
    const call = createCall({ batch: {}, watched });
    const loss = (): Scalar => {
      const square_ = mul(sum(square(sub(weight.apply(x, call), y))), 1 / y.size / 96) as Scalar;
      return progress < 0.2 ? square_ : (add(square_, mul(weight.undecided(call, 20 - (18 * (progress - 0.2)) / 0.8), decide)) as Scalar);
    };
    const { value, gradients } = gradientsOf(loss, [...watched.values()], (of) => [{ of, value: one }]);
    tidy(() => {
      for (const [i, parameter] of parameters.entries()) {
        const old = states.get(parameter)!;
        const context = { parameter, attempt: step, updates: scalar(step + 1), rate: learningRate, progress, draw: createDraw(0, step) };
        const { update, state, how } = optimizer.update({ kind: 'dense', value: gradients[i]! }, old, context);
        parameter.commit(update, scalar(1), how);
        for (const tensor of Object.values(state)) keep(tensor as Tensor);
        for (const tensor of Object.values(old)) (tensor as Tensor).dispose();
        states.set(parameter, state);
      }
    });
    for (const t of [value, ...gradients]) t!.dispose();
  }
  for (const state of states.values()) for (const tensor of Object.values(state)) (tensor as Tensor).dispose();
  one.dispose();
}

describe('the rounding of a layer', () => {
  it('loses less the more of it trains', async () => {
    const before = memory().numTensors;
    const [nearest, five, sixteen, whole] = [await layerError('none'), await layerError(5), await layerError(16), await layerError('full')];
    expect(five).toBeLessThan(nearest);
    expect(sixteen).toBeLessThan(five);
    expect(whole).toBeLessThan(sixteen);
    expect(memory().numTensors).toBe(before);
  });
});

const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, sequences);

/** Relative distance of the logits after quantizing a fresh model. */
async function errorOf(method: Method, layers = 2): Promise<number> {
  const model = await build(layers);
  const before = await logitsOf(model);
  const batches = batchesOf();
  await quantize(model, method, method.kind === 'rtn' ? {} : { calibrate: { batches } });
  const error = distance(await logitsOf(model), before);
  batches.forEach(disposeBatch);
  model.dispose();
  return error;
}

const quick = { bits: 2, groupSize: 32, epochs: 2 } as const;

describe('cbq', () => {
  it('loses less of the outputs than nearest rounding', async () => {
    const nearest = await errorOf(rtn({ bits: 2, groupSize: 32, mse: true }));
    expect(await errorOf(cbq({ ...quick, epochs: 6, learningRate: 0.3 }))).toBeLessThan(0.9 * nearest);
  });

  it('loses no more where windows overlap than where each block is fitted alone, in as many steps', async () => {
    const options = { ...quick, learningRate: 0.3 };
    // Two windows of two blocks, or three of one: twelve passes over the batches.
    const alone = await errorOf(cbq({ ...options, window: 1, epochs: 4 }), 3);
    const overlapping = await errorOf(cbq({ ...options, window: 2, overlap: 1, epochs: 6 }), 3);
    expect(overlapping).toBeLessThanOrEqual(alone);
  }, 120_000);

  it.each([
    { rank: 'full', epochs: 12, learningRate: 0.4 },
    { rank: 5, epochs: 12, learningRate: 0.4 },
  ] as const)(
    'has decided nearly every entry of what it puts, rank $rank',
    async (options) => {
      const model = await build(1);
      const at = '**.mlp.*';
      const batches = batchesOf();
      const open: Tensor[] = [];
      const onFit = ({ done, total }: FitProgress): void => {
        if (done === total) for (const { weight } of model.sites(at)) open.push((weight as FakeQuant).roundedUp());
      };
      await quantize(model, cbq({ ...quick, ...options, window: 1 }), { at, calibrate: { batches, onFit } });
      expect(open).toHaveLength(3);
      let [decided, entries] = [0, 0];
      for (const up of open) {
        decided += (await up.data()).filter((h) => Math.abs(h - Math.round(h)) < 0.01).length;
        entries += up.size;
        up.dispose();
      }
      expect(decided / entries).toBeGreaterThan(0.95);
      batches.forEach(disposeBatch);
      model.dispose();
    },
    120_000,
  );

  it('fits a block in every window that holds it, and leaves alone what it has put', async () => {
    const before = memory().numTensors;
    const model = await build(3);
    const batches = batchesOf();
    const windows: string[][] = [];
    const put: Promise<number[]>[] = [];
    const first = 'model.layers.0.mlp.up_proj';
    const { sites, bytes } = await quantize(model, cbq({ ...quick, epochs: 1 }), {
      calibrate: {
        batches,
        onFit: ({ window, done }) => void (done === 1 && windows.push([...window])),
        onBlock: () => void put.push(codesOf(model, first)),
      },
    });
    expect(windows).toEqual([
      ['model.layers.0', 'model.layers.1'],
      ['model.layers.1', 'model.layers.2'],
    ]);
    expect(sites).toHaveLength(21);
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'affine')).toBe(true);
    // Codes of 2 bits, a step and a zero a group of 32: nothing of the fit is left.
    const entries = model.sites('all-linear').reduce((total, { weight }) => total + weight!.shape[0] * weight!.shape[1], 0);
    expect(bytes).toBe(entries / 4 + (4 * entries) / 32 + entries / 32);
    expect(put).toHaveLength(2);
    for (const codes of put) expect(await codes).toEqual(await codesOf(model, first));
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each(['full', 3] as const)('holds what it says between two steps, rank %s', async (rank) => {
    const ledger = openMemoryLedger();
    const model = await build();
    const batches = batchesOf();
    const before = ledger.bytes();
    let held = 0;
    await quantize(model, cbq({ ...quick, rank, epochs: 1 }), {
      calibrate: { batches, onFit: () => (held = ledger.bytes() - before) },
    });
    // What enters, of both models, with the angles' 8 numbers a row; and h behind the window.
    const activations = 4 * 4 * 24 * (3 * 32 + 2 * 8);
    // Value and Adam's state of the rounding and the steps; zeros.
    const soft = model.sites('all-linear').reduce((total, { weight }) => {
      const [out, width] = weight!.shape;
      const groups = (out * width) / 32;
      return total + 12 * (rank === 'full' ? out * width : rank * (out + width)) + 12 * groups + 4 * groups;
    }, 0);
    expect(held).toBe(activations + soft);
    batches.forEach(disposeBatch);
    model.dispose();
    ledger.dispose();
  });

  it('gives the same for the same seed, and takes back what it did when it is stopped', async () => {
    const codes: number[][] = [];
    for (const seed of [1, 1, 2]) {
      const model = await build();
      const batches = batchesOf();
      await quantize(model, cbq({ ...quick, rank: 3, epochs: 1, outliers: 'both', seed }), { calibrate: { batches } });
      codes.push(await codesOf(model, 'model.layers.1.mlp.down_proj'));
      expect(model.sites('all-linear').some(({ weight }) => weight!.parts['input_scales'] !== undefined)).toBe(true);
      batches.forEach(disposeBatch);
      model.dispose();
    }
    expect(codes[1]).toEqual(codes[0]);
    expect(codes[2]).not.toEqual(codes[0]);

    const model = await build(3);
    const batches = batchesOf();
    const before = memory().numTensors;
    const stop = new AbortController();
    // In the second window: the first block is replaced, the second is soft.
    const onFit = ({ window, done }: FitProgress): void => void (window[0] === 'model.layers.1' && done === 2 && stop.abort());
    await expect(quantize(model, cbq(quick), { calibrate: { batches, onFit }, signal: stop.signal })).rejects.toThrow(AbortError);
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    expect(memory().numTensors).toBe(before);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('brings outliers of an input half way, without moving the outputs', async () => {
    const scales = channelScales(Float32Array.from([2, 8, 0.5, 1, 1, 1, 1, 1]))!;
    expect([...scales]).toEqual([1, 0.5, 1, 1, 1, 1, 1, 1]);
    const base = denseWeight(denseParameter('m.weight', noise([4, 8], createDraw(1, 0).at('w'), 'gaussian'), { role: 'matrix' }));
    const x = noise([3, 8], createDraw(1, 0).at('x'), 'gaussian') as Tensor2D;
    const call = createCall({ batch: {} });
    const expected = await base.apply(x, call).data();
    // Steps so small that every value has a place between two codes.
    const wide = {
      scales: new Float32Array(4).fill(0.05),
      zeros: new Uint8Array(4).fill(128),
      inputScales: scales,
      rounding: zeros([4, 8]) as Tensor2D,
    };
    const weight = fakeQuant('m', base, wide, { bits: 8, groupSize: 8, grid: 'asymmetric' });
    const given = tidy(() => weight.apply(x, call).dataSync());
    // Fractions are kept within 1e-4 of a step from the codes.
    for (const [i, value] of given.entries()) expect(value).toBeCloseTo(expected[i]!, 4);
    x.dispose();
    disposeWeight(weight);
  });

  it('refuses what lies outside its options, with the field, the value and the range', async () => {
    expect(() => cbq({ window: 0 })).toThrow(/window must be a whole number from 1, got 0/);
    expect(() => cbq({ overlap: 2 })).toThrow(/overlap must be a whole number from 0, below the window of 2, got 2/);
    expect(() => cbq({ rank: 0 })).toThrow(/rank must be a whole number from 1, or 'full', got 0/);
    expect(() => cbq({ start: 'nearest' as never })).toThrow(/start must be one of gptq, float, got nearest/);
    expect(() => cbq({ start: 'gptq', rank: 5 })).toThrow(/start must be 'float' with a rank of 5: .*, got gptq/);
    expect(() => cbq({ epochs: 1.5 })).toThrow(ConfigError);
    expect(() => cbq({ learningRate: 0 })).toThrow(/learningRate must be a finite number above 0, got 0/);
    expect(() => cbq({ outliers: true as never })).toThrow(/outliers must be one of none, weights, inputs, both, got true/);
    expect(() => cbq({ decide: NaN })).toThrow(/decide must be a finite number from 0, got NaN/);
    expect(() => cbq({ bits: 5 as never })).toThrow(/bits must be one of/);
    const model = await build();
    const batches = batchesOf();
    await expect(quantize(model, cbq({ window: 3, groupSize: 32 }), { calibrate: { batches } })).rejects.toThrow(
      /3 blocks is longer than the 2/,
    );
    await expect(quantize(model, cbq({ groupSize: 24 }), { calibrate: { batches } })).rejects.toThrow(/rows of 32.*got 24/);
    await expect(quantize(model, cbq({ groupSize: 32 }))).rejects.toThrow(/needs calibration batches/);
    await expect(quantize(model, cbq({ groupSize: 32 }), { calibrate: { batches: [] } })).rejects.toThrow(/at least one batch/);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('moves the rounding by less where the model is wider', async () => {
    const model = await build();
    const rateAt = async (hiddenSize: number, options: CbqOptions = {}): Promise<unknown> =>
      ((await cbq(options).plan!(model.sites('all-linear'), { ...model, info: { ...model.info, hiddenSize } })) as { learningRate: number })
        .learningRate;
    expect(await rateAt(32)).toBe(0.2);
    expect(await rateAt(192)).toBeCloseTo(0.2, 12);
    expect(await rateAt(4096)).toBeCloseTo(0.009375, 12);
    expect(await rateAt(4096, { learningRate: 0.3 })).toBe(0.3);
    model.dispose();
  });

  it('is its own recipe', () => {
    expect(JSON.stringify(cbq({ bits: 2, window: 1 }))).toBe(
      '{"kind":"cbq","options":{"bits":2,"groupSize":64,"symmetric":false,"mse":true,"window":1,"overlap":0,"rank":"full","start":"gptq","epochs":5,' +
        '"scaleRate":0.0001,"decide":0.5,"divergence":1,"outliers":"none","seed":0}}',
    );
    expect(cbq({ activations: { bits: 4 } }).options['activations']).toEqual({
      bits: 4,
      symmetric: false,
      per: 'token',
      learningRate: 1e-3,
      attention: [],
    });
  });
});
