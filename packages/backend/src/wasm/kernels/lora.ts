import { loraGradOp, loraOp, loraProductGradOp, loraProductOp, type NoiseAttributes, type PackedShape } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { checkDepths, fewRows, multiply, multiplyWithLowRank, type Matrix } from '../gemm.ts';
import { wasmKernel } from './kernel.ts';
import { maskWords } from './noise.ts';
import { multiplyPacked } from './packed-matmul.ts';

type Inputs<X extends string> = Readonly<Record<X, TensorInfo>>;
type Parts = Readonly<Record<string, TensorInfo>>;

interface Attributes {
  readonly scale: number;
  readonly dropout?: NoiseAttributes | undefined;
}

interface ProductAttributes extends Attributes {
  readonly packed?: PackedShape | undefined;
}

/** Scratch for the tasks' shares in the gradients of the factors. */
const shareBytes = 16 << 20;
const [fewestShares, mostShares] = [4, 16];
/** Room at the front of the shared scratch for what `Dropout` of assembly/dropout.ts describes. */
const maskBytes = 64;

/**
 * An adapter's whole tail in one call forward and two backward, where composed ops take four and nine; over the base's own
 * product, in its place.
 */
export const loraKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs<'base' | 'x' | 'a' | 'b'>, Attributes & { unread: boolean }>(
    device,
    loraOp.kernelName,
    ({ base, ...inputs }, attributes) => {
      const y = device.output(base.shape);
      return [y, addTail(device, { ...inputs, base, y }, attributes)];
    },
  ),
  wasmKernel<Inputs<'dy' | 'x' | 'a' | 'b' | 'inner'>, Attributes>(device, loraGradOp.kernelName, (inputs, attributes) => {
    const dx = device.output(inputs.x.shape);
    return [dx, ...tailGradients(device, { ...inputs, dx }, { ...attributes, accumulate: false })];
  }),
  wasmKernel<Parts & Inputs<'x' | 'a' | 'b'>, ProductAttributes & { unread: boolean }>(
    device,
    loraProductOp.kernelName,
    ({ x, a, b, ...parts }, { packed, ...attributes }) => {
      if (isOneProduct(x, { packed, ...attributes })) return productWithTail(device, x, parts['weight']!, { a, b }, attributes);
      const y = attributes.unread ? device.output([x.shape[0]!, b.shape[0]!]) : product(device, x, parts, { packed, transposed: false });
      return [y, addTail(device, { x, a, b, base: y, y }, attributes)];
    },
  ),
  wasmKernel<Parts & Inputs<'dy' | 'x' | 'a' | 'b' | 'inner'>, ProductAttributes>(
    device,
    loraProductGradOp.kernelName,
    ({ dy, x, a, b, inner, ...parts }, { packed, ...attributes }) => {
      if (isOneProduct(x, { packed, ...attributes }))
        return productGradients(device, { dy, x, a, b, inner, weight: parts['weight']! }, attributes);
      const dx = product(device, dy, parts, { packed, transposed: true });
      return [dx, ...tailGradients(device, { dy, x, a, b, inner, dx }, { ...attributes, accumulate: true })];
    },
  ),
];

/** Whether W and the factors meet x in one product: W is floats, x goes into both as it is, and has rows enough to be packed. */
const isOneProduct = ({ shape }: TensorInfo, { packed, dropout }: ProductAttributes): boolean =>
  packed === undefined && dropout === undefined && shape[0]! > fewRows;

/** [x·Wᵀ + scale·inner·bᵀ, inner = x·aᵀ]; with `unread` the first is not written. */
function productWithTail(
  device: WasmDevice,
  x: TensorInfo,
  weight: TensorInfo,
  { a, b }: Inputs<'a' | 'b'>,
  { scale, unread }: Attributes & { unread: boolean },
): TensorInfo[] {
  const { rows, width, out, rank } = sidesOf(x, b);
  checkDepths(x.shape, weight.shape, width, weight.shape[1]!);
  const [y, inner] = [device.output([rows, out]), device.output([rows, rank])];
  const sides = { rows, columns: unread ? 0 : out, depth: width };
  multiplyWithLowRank(device, device.address(x), matrixOf(device, weight, true), device.address(y), sides, {
    rank,
    down: matrixOf(device, a, true),
    up: matrixOf(device, b, true),
    inner: device.address(inner),
    before: 1,
    after: scale,
  });
  return [y, inner];
}

/** [dx = dy·W + dInner·a with dInner = scale·dy·b, da, db]. */
function productGradients(
  device: WasmDevice,
  { weight, ...inputs }: Inputs<'dy' | 'x' | 'a' | 'b' | 'inner' | 'weight'>,
  { scale }: Attributes,
): TensorInfo[] {
  const { dy, x, a, b } = inputs;
  const { rows, width, out, rank } = sidesOf(x, b);
  const [dx, dInner] = [device.output(x.shape), device.output([rows, rank])];
  const sides = { rows, columns: width, depth: out };
  multiplyWithLowRank(device, device.address(dy), matrixOf(device, weight, false), device.address(dx), sides, {
    rank,
    down: matrixOf(device, b, false),
    up: matrixOf(device, a, false),
    inner: device.address(dInner),
    before: scale,
    after: 1,
  });
  const gradients = factorGradients(device, { rows, width, out, rank }, scale, (partial, { tasks, taskRows }) =>
    device.run('loraShares', [...[dy, x, inputs.inner, dInner].map(device.address), partial, rows, width, out, rank, taskRows], {
      tasks,
      work: rows * rank * (width + out),
    }),
  );
  device.release(dInner);
  return [dx, ...gradients];
}

const matrixOf = (device: WasmDevice, tensor: TensorInfo, transposed: boolean): Matrix => ({
  at: device.address(tensor),
  stride: tensor.shape[1]!,
  transposed,
});

/** x·Wᵀ, or x·W where `transposed`; the parts are those of a packed W, or `weight`. */
function product(
  device: WasmDevice,
  x: TensorInfo,
  parts: Parts,
  { packed, transposed }: { packed: PackedShape | undefined; transposed: boolean },
): TensorInfo {
  if (packed !== undefined) return multiplyPacked(device, x, parts, packed, transposed);
  const weight = parts['weight']!;
  const [out, width] = weight.shape as [number, number];
  const [rows, depth] = x.shape as [number, number];
  checkDepths(x.shape, weight.shape, depth, transposed ? out : width);
  const columns = transposed ? width : out;
  const y = device.output([rows, columns]);
  const sides = { rows, columns, depth };
  multiply(device, matrixOf(device, x, false), matrixOf(device, weight, !transposed), device.address(y), sides);
  return y;
}

/** y = base + scale·inner·bᵀ, base and y the same or not; gives inner. With `unread` y is left as it is. */
function addTail(
  device: WasmDevice,
  { base, x, a, b, y }: Inputs<'base' | 'x' | 'a' | 'b' | 'y'>,
  { scale, dropout, unread }: Attributes & { unread: boolean },
): TensorInfo {
  const { rows, width, out, rank } = sidesOf(x, b);
  const inner = device.output([rows, rank]);
  const columns = unread ? 0 : out;
  const mask = dropout === undefined ? 0 : device.shared(maskBytes);
  if (dropout !== undefined) maskWords(device, mask, dropout);
  device.run('lora', [...[base, x, a, b, y, inner].map(device.address), rows, width, columns, rank, scale, mask], {
    tasks: Math.ceil(rows / device.kernels['loraRows']!()),
    work: rows * rank * (width + columns) + (dropout === undefined ? 0 : rows * width * 40),
    scratchBytes: device.kernels['loraBytes']!(rank, width, columns, mask),
  });
  return inner;
}

/** Writes dx, or adds to it; gives da and db. */
function tailGradients(
  device: WasmDevice,
  { dy, x, a, b, inner, dx }: Inputs<'dy' | 'x' | 'a' | 'b' | 'inner' | 'dx'>,
  { scale, dropout, accumulate }: Attributes & { accumulate: boolean },
): TensorInfo[] {
  const sides = sidesOf(x, b);
  const { rows, width, out, rank } = sides;
  return factorGradients(device, sides, scale, (partial, { shared, tasks, taskRows }) => {
    const mask = dropout === undefined ? 0 : shared;
    if (dropout !== undefined) maskWords(device, mask, dropout);
    const flags = [scale, mask, accumulate ? 1 : 0];
    device.run('loraGrad', [...[dy, x, a, b, inner, dx].map(device.address), partial, rows, width, out, rank, ...flags, taskRows], {
      tasks,
      work: 2 * rows * rank * (width + out) + (dropout === undefined ? 0 : rows * width * 40),
      scratchBytes: device.kernels['loraBytes']!(rank, width, out, mask),
    });
  });
}

interface Sides {
  readonly rows: number;
  readonly width: number;
  readonly out: number;
  readonly rank: number;
}

/** da and db, summed up from the shares that `addShares` writes at an address, one for each of its tasks; `shared` has room for a mask. */
function factorGradients(
  device: WasmDevice,
  { rows, width, out, rank }: Sides,
  scale: number,
  addShares: (partial: number, division: { shared: number; tasks: number; taskRows: number }) => void,
): TensorInfo[] {
  const [da, db] = [device.output([rank, width]), device.output([out, rank])];
  const step = device.kernels['loraRows']!();
  const shareSize = rank * (width + out) * 4;
  const most = Math.min(mostShares, Math.max(fewestShares, Math.floor(shareBytes / shareSize)));
  // By the rows alone, never by the threads: sums then run in one order on every machine.
  const taskRows = step * Math.max(1, Math.ceil(rows / step / most));
  const tasks = Math.ceil(rows / taskRows);
  const shared = device.shared(maskBytes + tasks * shareSize);
  const partial = shared + maskBytes;
  addShares(partial, { shared, tasks, taskRows });
  device.run('loraFactors', [partial, tasks, device.address(da), device.address(db), width, out, rank, scale], {
    tasks: Math.ceil(width / columnsOfTask) + Math.ceil(out / columnsOfTask),
    work: tasks * rank * (width + out),
  });
  return [da, db];
}

/** As in assembly/lora.ts. */
const columnsOfTask = 256;

function sidesOf(x: TensorInfo, b: TensorInfo): Sides {
  const [rows, width] = x.shape as [number, number];
  const [out, rank] = b.shape as [number, number];
  return { rows, width, out, rank };
}
