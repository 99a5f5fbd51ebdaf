/**
 * The time of every WebGPU kernel at the sizes of training and generating, against what the card can do: the larger of its
 * operations at the card's f32 rate and its bytes at the card's memory rate, both measured here first. One JSON row a line.
 *   node kernels.mjs [part of a name] [--software] [--seconds 0.2] [--tune]
 * `--tune` measures the ways of sharing out a packed product of one row instead, to choose from.
 */
import { parseArgs } from 'node:util';
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { backend, engine } from '@tensorflow/tfjs-core';
import {
  adamOp,
  addRmsNormOp,
  allFiniteOp,
  attentionGradOp,
  attentionOp,
  codedAdamOp,
  commitUpdateOp,
  crossEntropyGradOp,
  crossEntropyOp,
  dispose,
  expandGroupsOp,
  geluGradOp,
  geluOp,
  integerMatMulOp,
  layerNormGradOp,
  layerNormOp,
  loraProductGradOp,
  loraProductOp,
  matMul,
  neg,
  rmsNormGradOp,
  rmsNormOp,
  ropeOp,
  runOp,
  softRoundGradOp,
  softRoundOp,
  swigluGradOp,
  swigluOp,
  tensor,
  tensor1d,
  packedMatMulOp,
  packBits,
  packedRowsOp,
  pickGroupsOp,
  putRows,
  sumSquaresOp,
  type Op,
  type PackedFormat,
  wordsOf,
  type Tensor,
} from '../../packages/tensor/src/index.ts';
import { init, type AffineBits } from '../../packages/niwaki/src/index.ts';
import { abilitiesOf } from '../../packages/backend/src/webgpu/abilities.ts';
import { dispatch } from '../../packages/backend/src/webgpu/dispatch.ts';
import { decoderOf } from '../../packages/backend/src/webgpu/kernels/packed-decode.wgsl.ts';
import { packedVectorProduct, vectorColumns } from '../../packages/backend/src/webgpu/kernels/packed-matmul.wgsl.ts';
import { fold, program } from '../../packages/backend/src/webgpu/program.ts';
import { floats, ints, type Host, type Hosts } from '../../packages/backend/test/parity.ts';
import { packedFixture } from '../../packages/backend/test/packed-fixture.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    software: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '0.2' },
    tune: { type: 'boolean', default: false },
  },
});
const { description } = await init({ device: 'webgpu', software: values.software });
const seconds = Number(values.seconds);

interface Row {
  readonly name: string;
  readonly flops: number;
  /** Each input read once, each output written once. */
  readonly bytes: number;
  run(): Tensor | readonly Tensor[];
  readonly inputs: readonly Tensor[];
}

/** Waits for everything queued: one small read after it. */
async function settle(): Promise<void> {
  const probe = neg(tensor1d([1]));
  await probe.data();
  probe.dispose();
}

/** Of one call. What the host spends on a call is in no way hidden by others, unlike the wait for the card. */
interface Time {
  readonly seconds: number;
  readonly hostSeconds: number;
}

/** A call in a queue long enough to hide the wait for its end; the best of three. */
async function timeOf(run: Row['run']): Promise<Time> {
  const queue = async (count: number): Promise<Time> => {
    const [started, cpu] = [performance.now(), process.cpuUsage()];
    for (let i = 0; i < count; i++) dispose([run()].flat() as Tensor[]);
    await settle();
    const { user, system } = process.cpuUsage(cpu);
    return { seconds: (performance.now() - started) / 1000 / count, hostSeconds: (user + system) / 1e6 / count };
  };
  await queue(2);
  const once = (await queue(3)).seconds;
  const count = Math.max(3, Math.min(2000, Math.ceil(seconds / once)));
  const turns = [await queue(count), await queue(count), await queue(count)];
  return turns.reduce((best, turn) => (turn.seconds < best.seconds ? turn : best));
}

const upload = ({ shape, values: data }: Host): Tensor => tensor(data, [...shape], data instanceof Int32Array ? 'int32' : 'float32');

function opRow(name: string, op: Op<never, never>, hosts: Readonly<Record<string, Host>>, attrs: object, flops: number): Row {
  const inputs = Object.fromEntries(Object.entries(hosts).map(([key, host]) => [key, upload(host)]));
  const run = (): Tensor[] => runOp(op, inputs as never, attrs as never) as Tensor[];
  const outputs = run();
  const bytes = 4 * [...Object.values(inputs), ...outputs].reduce((sum, { size }) => sum + size, 0);
  dispose(outputs);
  return { name, flops, bytes, run, inputs: Object.values(inputs) };
}

function product(m: number, k: number, n: number, ta = false, tb = false): Row {
  const a = upload(floats(ta ? [k, m] : [m, k]));
  const b = upload(floats(tb ? [n, k] : [k, n], 2));
  return {
    name: `f32 ${ta ? 'Aᵀ' : 'A'}·${tb ? 'Bᵀ' : 'B'} ${m}x${k}x${n}`,
    flops: 2 * m * k * n,
    bytes: 4 * (m * k + k * n + m * n),
    run: () => matMul(a as never, b as never, ta, tb),
    inputs: [a, b],
  };
}

function packed(format: PackedFormat, rows: number, out: number, width: number, { transposed = false, bits = 4 as AffineBits } = {}): Row {
  const { shape, parts } = packedFixture(format, out, width, 64, bits);
  const hosts = { x: floats([rows, transposed ? out : width]), ...parts };
  const name = `${format}${bits === 4 ? '' : ` of ${bits} bits`} ${transposed ? 'x·W' : 'x·Wᵀ'} ${rows}x${width}x${out}`;
  return opRow(name, packedMatMulOp as never, hosts, { ...shape, transposed }, 2 * rows * out * width);
}

function integers(format: PackedFormat, activations: 'int16' | 'int8', width: number): Row {
  const { shape, parts } = packedFixture(format, width, width, format.startsWith('Q') ? 32 : 64);
  const hosts = { x: floats([1, width]), ...parts };
  const name = `${format} x·Wᵀ 1x${width}x${width}, ${activations}`;
  return opRow(name, integerMatMulOp as never, hosts, { ...shape, activations }, 2 * width * width);
}

/** n values kept of every m, to and from a dense matrix of so many entries. */
function placed(entries: number, n: number, m: number): (() => Row)[] {
  const bits = Math.log2(m);
  const sides = { n, m, groups: entries / m };
  const stored = sides.groups * n;
  const places = Array.from({ length: 64 * n }, (_, i) => ((i % n) * m) / n + (((i / n) | 0) % (m / n)));
  const pattern = wordsOf(packBits(places, { bits }));
  const words = ints([(stored * bits) / 32], (i) => pattern[i % pattern.length]!);
  return [
    () => opRow(`${n} of ${m} to ${entries} entries`, expandGroupsOp as never, { words, values: floats([stored]) }, sides, stored),
    () => opRow(`${n} of ${m} from ${entries} entries`, pickGroupsOp as never, { words, dense: floats([entries]) }, sides, stored),
  ];
}

/** A frozen map with its adapter, forward and backward. */
function lowRank(format: 'f32' | PackedFormat, rows: number, width: number, out: number, rank: number): (() => Row)[] {
  const { shape, parts } =
    format === 'f32' ? { shape: undefined, parts: { weight: floats([out, width], 6) } } : packedFixture(format, out, width);
  const factors = { a: floats([rank, width], 3), b: floats([out, rank], 4) };
  const x = floats([rows, width], 2);
  const dy = floats([rows, out], 5);
  const name = `${rows}x${width}x${out}, rank ${rank}`;
  const flops = 2 * rows * (width * out + rank * (width + out));
  const attributes = { scale: 2, packed: shape };
  return [
    () => opRow(`${format} LoRA ${name}`, loraProductOp as never, { ...parts, x, ...factors }, { ...attributes, unread: false }, flops),
    () =>
      opRow(
        `${format} LoRA gradient ${name}`,
        loraProductGradOp as never,
        { ...parts, dy, x, ...factors, inner: floats([rows, rank], 7) },
        attributes,
        flops + 2 * rows * rank * (width + out),
      ),
  ];
}

function lookup(format: PackedFormat, rows: number, out: number, width: number): Row {
  const { shape, parts } = packedFixture(format, out, width);
  const ids = ints([rows], (i) => (i * 7919) % out);
  const row = opRow(`${format} ${rows} rows of ${out}x${width} by id`, packedRowsOp as never, { ids, ...parts }, shape, 2 * rows * width);
  const stored = Object.values(parts).reduce((sum, { values: { length } }) => sum + 4 * length, 0);
  // Not the rows that nobody asks for.
  return { ...row, bytes: row.bytes - stored * (1 - rows / out) };
}

function attention(batch: number, time: number, heads: number, kvHeads: number, d: number, always = 0): Row[] {
  const q = floats([batch, time, heads, d]);
  const keys = always + time;
  const [k, v] = [floats([batch, keys, kvHeads, d], 2), floats([batch, keys, kvHeads, d], 3)];
  const [from, to] = [ints([batch, time], () => always), ints([batch, time], (i) => always + (i % time) + 1)];
  const attributes = { scale: 1 / Math.sqrt(d), always };
  const name = `${batch}x${time} ${heads}/${kvHeads} heads of ${d}${always > 0 ? ` behind ${always} keys` : ''}`;
  // Two products over the half of the square that is seen; five in the gradient.
  const flops = 2 * batch * heads * time * (time + 2 * always) * d;
  const forward = opRow(`attention ${name}`, attentionOp as never, { q, k, v, from, to }, attributes, flops);
  const [y, logSumExp] = forward.run() as Tensor[];
  const dy = upload(floats([batch, time, heads, d], 4));
  const inputs = {
    dy,
    q: forward.inputs[0]!,
    k: forward.inputs[1]!,
    v: forward.inputs[2]!,
    y: y!,
    logSumExp: logSumExp!,
    from: forward.inputs[3]!,
    to: forward.inputs[4]!,
  };
  const gradient: Row = {
    name: `attention gradient ${name}`,
    flops: 2.5 * flops,
    bytes: 4 * Object.values(inputs).reduce((sum, { size }) => sum + size, 0) + 4 * (inputs.q.size + 2 * inputs.k.size),
    run: () => runOp(attentionGradOp as never, inputs as never, attributes as never) as Tensor[],
    inputs: [dy, y!, logSumExp!],
  };
  return [forward, gradient];
}

/** A token's keys or values put where there is room for them; only its own row moves. */
function cached(room: number, kvHeads: number, d: number): Row {
  const fresh = upload(floats([1, 1, kvHeads, d]));
  let held = upload(floats([1, room, kvHeads, d], 2));
  return {
    name: `a row more in a cache of ${room}x${kvHeads}x${d}`,
    flops: 0,
    bytes: 8 * fresh.size,
    run: () => {
      const next = putRows(held, fresh, room - 24, { owned: true });
      held.dispose();
      held = next;
      return [];
    },
    inputs: [fresh],
  };
}

/** One row of x, by every number of runs a thread, threads and ways to sum. */
function sharings(format: PackedFormat, out: number, width: number): Row[] {
  const { shape, parts } = packedFixture(format, out, width);
  const decoder = decoderOf(shape);
  const gpu = backend() as never as WebGPUBackend;
  const inputs = Object.fromEntries(Object.entries({ x: floats([1, width]), ...parts }).map(([name, host]) => [name, upload(host)]));
  const bytes = 4 * Object.values(inputs).reduce((sum, { size }) => sum + size, out);
  const eaches = ([1, 2, 4] as const).filter((each) => each <= decoder.alike);
  const ways = eaches.flatMap((each) =>
    [64, 128, 256].flatMap((threads) => [false, true].map((subgroups) => ({ each, threads, subgroups }))),
  );
  return ways
    .filter(({ subgroups }) => !subgroups || abilitiesOf(gpu).subgroups)
    .map((way) => ({
      name: `${format} 1x${width}x${out}: ${way.each} runs, ${way.threads} threads, ${way.subgroups ? 'subgroups' : 'plain'}`,
      flops: 2 * out * width,
      bytes,
      run: () =>
        engine().makeTensorFromTensorInfo(
          dispatch(gpu, packedVectorProduct({ decoder, aligned: true, rows: 1, ...way }), {
            inputs,
            outputs: { y: { shape: [1, out] } },
            uniforms: { rows: 1, columns: out, terms: width },
            groups: fold(out, vectorColumns),
          }).y,
        ),
      inputs: Object.values(inputs),
    }));
}

const n = 1 << 24;
const wide = 49152;
const positive = (host: Host): Host => ({ ...host, values: host.values.map(Math.abs) as Float32Array });
const one = (value: number): Host => ({ shape: [], values: Float32Array.of(value) });

const tuned: readonly (() => readonly Row[])[] = (['codebook4', 'Q4_0', 'Q4_1', 'Q8_0', 'Q4_K', 'Q6_K', 'affine'] as const).flatMap(
  (format) => [() => sharings(format, 4096, 4096), () => sharings(format, 1536, format.endsWith('K') ? 768 : 576)],
);

/** 16M entries between the codes of two bits. */
const softCodes = (): Hosts => ({
  w: floats([n], 1, 2),
  logits: floats([n], 2, 3),
  scales: positive(floats([n / 64], 4)),
  zeros: { shape: [n / 64], values: new Float32Array(n / 64).fill(2) },
});

/** Made one at a time, so that only one row's tensors are on the card. */
const rows: readonly (() => Row | readonly Row[])[] = [
  () => opRow('a launch (swiglu of one entry)', swigluOp as never, { gate: floats([1]), up: floats([1]) }, {}, 6),
  () => product(512, 576, 1536),
  () => product(512, 576, 1536, false, true),
  () => product(576, 512, 1536, true),
  () => product(2048, 2048, 2048),
  () => product(2048, 2048, 2048, false, true),
  () => product(2048, 2048, 2048, true),
  () => product(512, 576, 49152, false, true),
  () => product(1, 2048, 2048, false, true),
  () => product(1, 4096, 4096, false, true),
  () => product(512, 576, 8),
  () => product(512, 8, 1536),
  () => product(8, 512, 576, true),
  ...(['codebook4', 'Q4_0', 'Q4_1', 'Q8_0', 'Q4_K', 'Q6_K', 'affine'] as const).flatMap((format) => [
    () => packed(format, 1, 4096, 4096),
    () => packed(format, 512, 2048, 2048),
  ]),
  ...([2, 3, 8] as const).map((bits) => () => packed('affine', 1, 4096, 4096, { bits })),
  ...(['codebook4-nested', 'F16'] as const).map((format) => () => packed(format, 1, 4096, 4096)),
  ...(['codebook4', 'Q4_1'] as const).map((format) => () => packed(format, 4, 4096, 4096)),
  ...(['codebook4', 'Q4_0', 'Q4_1', 'Q8_0', 'affine'] as const).map((format) => () => integers(format, 'int8', 4096)),
  () => integers('Q4_1', 'int16', 4096),
  ...lowRank('f32', 512, 576, 1536, 8),
  ...lowRank('codebook4', 512, 576, 1536, 8),
  ...placed(4096 * 4096, 2, 4),
  () => lookup('Q4_1', 512, 49152, 2048),
  () => packed('codebook4', 512, 2048, 2048, { transposed: true }),
  () => packed('Q4_1', 512, 2048, 2048, { transposed: true }),
  () => packed('Q4_1', 512, 1536, 576 - (576 % 32)),
  () => packed('Q4_1', 1, 1536, 576),
  () => attention(4, 128, 9, 3, 64),
  () => attention(4, 128, 9, 3, 64, 20),
  () => attention(1, 2048, 9, 3, 64),
  () => attention(1, 1, 9, 3, 64, 1000).slice(0, 1),
  () => cached(1024, 3, 64),
  () =>
    opRow('rmsNorm 4096x2048', rmsNormOp as never, { x: floats([4096, 2048]), weight: floats([2048], 2) }, { eps: 1e-5 }, 4 * 4096 * 2048),
  () =>
    opRow(
      'rmsNorm of a sum 4096x2048',
      addRmsNormOp as never,
      { x: floats([4096, 2048]), delta: floats([4096, 2048], 3), weight: floats([2048], 2) },
      { eps: 1e-5 },
      5 * 4096 * 2048,
    ),
  () =>
    opRow(
      'rmsNorm gradient 4096x2048',
      rmsNormGradOp as never,
      { dy: floats([4096, 2048], 3), x: floats([4096, 2048]), weight: floats([2048], 2) },
      { eps: 1e-5, weightGradient: false },
      10 * 4096 * 2048,
    ),
  () =>
    opRow(
      'layerNorm 4096x2048',
      layerNormOp as never,
      { x: floats([4096, 2048]), weight: floats([2048], 2), bias: floats([2048], 3) },
      { eps: 1e-5 },
      7 * 4096 * 2048,
    ),
  () =>
    opRow(
      'layerNorm gradient 4096x2048',
      layerNormGradOp as never,
      { dy: floats([4096, 2048], 3), x: floats([4096, 2048]), weight: floats([2048], 2) },
      { eps: 1e-5, weightGradient: false },
      14 * 4096 * 2048,
    ),
  () => opRow('gelu 16M', geluOp as never, { x: floats([n]) }, { form: 'erf' }, 20 * n),
  () => opRow('gelu gradient 16M', geluGradOp as never, { dy: floats([n], 3), x: floats([n]) }, { form: 'erf' }, 26 * n),
  () =>
    opRow(
      'rope 4096 rows, 32/8 heads of 64',
      ropeOp as never,
      { q: floats([4096, 32, 64]), k: floats([4096, 8, 64], 4), cos: floats([4096, 32], 2), sin: floats([4096, 32], 3) },
      { inverse: false },
      3 * 4096 * 40 * 64,
    ),
  () => opRow('swiglu 16M', swigluOp as never, { gate: floats([n]), up: floats([n], 2) }, {}, 6 * n),
  () => opRow('swiglu gradient 16M', swigluGradOp as never, { dy: floats([n], 3), gate: floats([n]), up: floats([n], 2) }, {}, 12 * n),
  () => opRow('soft rounding 16M, groups of 64', softRoundOp as never, softCodes(), { most: 3 }, 24 * n),
  () => opRow('soft rounding gradient 16M', softRoundGradOp as never, { dy: floats([n], 3), ...softCodes() }, { most: 3 }, 32 * n),
  () =>
    opRow(
      `crossEntropy 512x${wide}`,
      crossEntropyOp as never,
      { logits: floats([512, wide]), targets: ints([512], (i) => i) },
      {},
      4 * 512 * wide,
    ),
  () =>
    opRow(
      `crossEntropy gradient 512x${wide}`,
      crossEntropyGradOp as never,
      { dloss: floats([512]), logits: floats([512, wide]), targets: ints([512], (i) => i), logSumExp: positive(floats([512], 5)) },
      { overwrite: false },
      4 * 512 * wide,
    ),
  () =>
    opRow(
      'adam 16M',
      adamOp as never,
      {
        gradient: floats([n]),
        momentum: floats([n], 2),
        variance: positive(floats([n], 3)),
        correction1: one(0.19),
        correction2: one(0.002),
        ok: one(1),
      },
      { beta1: 0.9, beta2: 0.999, eps: 1e-8, overwrite: false },
      12 * n,
    ),
  () =>
    opRow(
      'adam 16M, 8-bit moments',
      codedAdamOp as never,
      {
        gradient: floats([n]),
        momentumWords: ints([n / 4], (i) => Math.imul(i + 1, 0x9e3779b9)),
        momentumScales: positive(floats([n / 256], 2)),
        varianceWords: ints([n / 4], (i) => Math.imul(i + 5, 0x85ebca6b)),
        varianceScales: positive(floats([n / 256], 3)),
        factors: { shape: [3], values: Float32Array.of(0.19, 0.002, 1) },
      },
      { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize: 256, guard: true, overwrite: false },
      20 * n,
    ),
  () =>
    opRow(
      'commit of an update 16M',
      commitUpdateOp as never,
      { old: floats([n]), update: floats([n], 2), ok: one(1) },
      { keep: 0.999, scale: 1e-3, overwrite: false },
      3 * n,
    ),
  () => opRow('sum of squares 16M', sumSquaresOp as never, { x0: floats([n]) }, {}, 2 * n),
  () => opRow('allFinite 16M', allFiniteOp as never, { x: floats([n]) }, {}, n),
];

/** 16 chains of dependent multiply-adds a thread: f32 operations a second. */
async function peakFlops(): Promise<number> {
  const [chains, rounds, groups] = [16, 512, 4096];
  const peak = program({
    key: `bench-peak-${rounds}`,
    inputs: { x: 'f32' },
    outputs: { y: 'f32' },
    workgroup: 256,
    main: `
  var sums: array<vec4<f32>, ${chains / 4}>;
  let a = vec4<f32>(x[0]);
  for (var i = 0; i < ${chains / 4}; i++) { sums[i] = vec4<f32>(f32(index)); }
  for (var round = 0; round < ${rounds}; round++) {
    ${Array.from({ length: chains / 4 }, (_, i) => `sums[${i}] = fma(sums[${i}], a, a);`).join('\n    ')}
  }
  var total = vec4<f32>(0.0);
  for (var i = 0; i < ${chains / 4}; i++) { total += sums[i]; }
  y[index] = total.x + total.y + total.z + total.w;`,
  });
  const x = tensor1d([0.5]);
  const run = (): Tensor => {
    const { y } = dispatch(backend() as never as WebGPUBackend, peak, {
      inputs: { x },
      outputs: { y: { shape: [groups * 256] } },
      uniforms: {},
      groups: [groups],
    });
    return engine().makeTensorFromTensorInfo(y);
  };
  const { seconds: time } = await timeOf(run);
  x.dispose();
  return (2 * chains * rounds * groups * 256) / time;
}

/** A copy of half a gibibyte, more than any cache, four words at a time: bytes a second, read and written. */
async function peakBandwidth(): Promise<number> {
  const [words, lanes] = [1 << 25, 256];
  const copy = program({
    key: 'bench-copy',
    inputs: { x: 'vec4<f32>' },
    outputs: { y: 'vec4<f32>' },
    workgroup: lanes,
    main: '  y[index] = x[index];',
  });
  const x = tensor1d(new Float32Array(4 * words));
  const groups = [words / lanes / 4, 4] as const;
  const gpu = backend() as never as WebGPUBackend;
  const run = (): Tensor =>
    engine().makeTensorFromTensorInfo(
      dispatch(gpu, copy, { inputs: { x }, outputs: { y: { shape: [4 * words] } }, uniforms: {}, groups }).y,
    );
  const { seconds: time } = await timeOf(run);
  x.dispose();
  return (2 * 16 * words) / time;
}

const card = { flops: await peakFlops(), bytesPerSecond: await peakBandwidth() };
console.log(
  JSON.stringify({
    device: description,
    teraflops: Number((card.flops / 1e12).toFixed(2)),
    gigabytesPerSecond: Math.round(card.bytesPerSecond / 1e9),
  }),
);
const chosen = ({ name }: Row): boolean => positionals.length === 0 || positionals.some((part) => name.includes(part));
for (const make of values.tune ? tuned : rows) {
  const made = [make()].flat() as Row[];
  for (const row of made.filter(chosen)) {
    const { seconds: time, hostSeconds } = await timeOf(row.run);
    const [arithmetic, memory] = [row.flops / card.flops, row.bytes / card.bytesPerSecond];
    console.log(
      JSON.stringify({
        name: row.name,
        microseconds: Number((time * 1e6).toFixed(1)),
        hostMicroseconds: Number((hostSeconds * 1e6).toFixed(1)),
        ofRoofline: Number((Math.max(arithmetic, memory) / time).toFixed(3)),
        bound: arithmetic > memory ? 'arithmetic' : 'memory',
        teraflops: Number((row.flops / time / 1e12).toFixed(3)),
        gigabytesPerSecond: Number((row.bytes / time / 1e9).toFixed(1)),
      }),
    );
  }
  dispose([...new Set(made.flatMap(({ inputs }) => inputs))]);
}
process.exit(0);
