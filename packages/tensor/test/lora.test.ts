import { grads } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import {
  add,
  createDraw,
  loraProduct,
  loraTail,
  matMul,
  memory,
  mul,
  noise,
  noiseAttributes,
  packBytes,
  packedMatMul,
  sum,
  tensor2d,
  tidy,
  type FrozenMatrix,
  type PackedShape,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';

const values = (length: number, seed: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(seed + i * 1.7));
const matrix = (rows: number, columns: number, seed: number): Tensor2D => tensor2d(values(rows * columns, seed), [rows, columns]);

function inputs(): [Tensor2D, Tensor2D, Tensor2D, Tensor2D, Tensor2D] {
  return [matrix(5, 7, 1), matrix(5, 6, 2), matrix(3, 6, 3), matrix(7, 3, 4), matrix(5, 7, 5)];
}

async function differ(left: Tensor[], right: Tensor[]): Promise<number> {
  let worst = 0;
  for (const [i, tensor] of left.entries()) {
    const [x, y] = [await tensor.data(), await right[i]!.data()];
    expect(x.length).toBe(y.length);
    for (let e = 0; e < x.length; e++) worst = Math.max(worst, Math.abs(x[e]! - y[e]!));
  }
  return worst;
}

const composed = (scale: number) => (base: Tensor, x: Tensor, a: Tensor, b: Tensor) =>
  add(base, mul(matMul(matMul(x as Tensor2D, a as Tensor2D, false, true), b as Tensor2D, false, true), scale));

describe('the tail of a low-rank adapter', () => {
  it('is the composed expression, and so are its gradients', async () => {
    const before = memory().numTensors;
    const [base, x, a, b, dy] = inputs();
    const ours = grads((...args: Tensor[]) => loraTail(...(args as [Tensor2D, Tensor2D, Tensor2D, Tensor2D]), { scale: 0.7 }))(
      [base, x, a, b],
      dy,
    );
    const theirs = grads((...args: Tensor[]) => composed(0.7)(...(args as [Tensor, Tensor, Tensor, Tensor])))([base, x, a, b], dy);
    expect(await differ(ours, theirs)).toBeLessThan(1e-5);
    const [y, z] = [loraTail(base, x, a, b, { scale: 0.7 }), tidy(() => composed(0.7)(base, x, a, b))];
    expect(await differ([y], [z])).toBeLessThan(1e-6);
    for (const tensor of [...ours, ...theirs, base, x, a, b, dy, y, z]) tensor.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('drops the same entries of its input in every gradient', async () => {
    const [base, x, a, b, dy] = inputs();
    const address = createDraw(5, 0).at('x#dropout');
    const mask = mul(noise([5, 6], address, 'mask', { keep: 0.6 }), 1 / 0.6);
    const dropout = noiseAttributes([5, 6], address, 'mask', { keep: 0.6 });
    const ours = grads((...args: Tensor[]) => loraTail(...(args as [Tensor2D, Tensor2D, Tensor2D, Tensor2D]), { scale: 2, dropout }))(
      [base, x, a, b],
      dy,
    );
    const theirs = grads((bs: Tensor, xs: Tensor, as: Tensor, vs: Tensor) => composed(2)(bs, mul(xs, mask), as, vs))([base, x, a, b], dy);
    expect(await differ(ours, theirs)).toBeLessThan(1e-5);
  });

  it('without gradients for its factors still gives the one of x, and keeps less', async () => {
    const [base, x, a, b, dy] = inputs();
    const run = (factorGradients: boolean): { dx: Tensor; kept: number } => {
      let kept = 0;
      const [, dx] = grads((bs: Tensor, xs: Tensor) => {
        const before = memory().numTensors;
        const y = loraTail(bs as Tensor2D, xs as Tensor2D, a, b, { scale: 2, factorGradients });
        kept = memory().numTensors - before;
        return y;
      })([base, x], dy);
      return { dx: dx!, kept };
    };
    const [full, frozen] = [run(true), run(false)];
    expect(await differ([full.dx], [frozen.dx])).toBe(0);
    expect(frozen.kept).toBeLessThan(full.kept);
    const total = tidy(() => sum(frozen.dx));
    expect(Number.isFinite((await total.data())[0])).toBe(true);
  });
});

const shape: PackedShape = { format: 'Q8_0', out: 7, in: 32, blockSize: 32 };
const blocks = Uint8Array.from({ length: 7 * 34 }, (_, i) => (i % 34 === 0 ? 0 : i % 34 === 1 ? 0x24 : (i * 37) & 255));

describe.each([false, true])('a frozen map with a low-rank adapter as one node (packed: %s)', (packed) => {
  const width = 32;
  const make = (): { matrix: FrozenMatrix; product(x: Tensor): Tensor; sides: [Tensor2D, Tensor2D, Tensor2D, Tensor2D] } => {
    const sides: [Tensor2D, Tensor2D, Tensor2D, Tensor2D] = [matrix(5, width, 2), matrix(3, width, 3), matrix(7, 3, 4), matrix(5, 7, 5)];
    if (packed) {
      const parts = { blocks: packBytes(blocks) };
      return { matrix: { parts, packed: shape }, product: (x) => packedMatMul(x as Tensor2D, parts, shape), sides };
    }
    const weight = matrix(7, width, 6);
    return { matrix: { parts: { weight } }, product: (x) => matMul(x as Tensor2D, weight, false, true), sides };
  };
  const address = createDraw(5, 0).at('x#dropout');
  const dropout = noiseAttributes([5, width], address, 'mask', { keep: 0.6 });

  it.each([
    ['plain', {}],
    ['under dropout', { dropout }],
    ['with frozen factors', { factorGradients: false }],
    ['with frozen factors, under dropout', { factorGradients: false, dropout }],
  ] as const)('is the product and the tail in two nodes, and so are its gradients: %s', async (_, options) => {
    const before = memory().numTensors;
    const { matrix: frozen, product, sides } = make();
    const [x, a, b, dy] = sides;
    const one = (...[xs, as, bs]: Tensor[]): Tensor =>
      loraProduct(xs as Tensor2D, frozen, as as Tensor2D, bs as Tensor2D, { scale: 2, ...options });
    const two = (...[xs, as, bs]: Tensor[]): Tensor =>
      loraTail(product(xs!) as Tensor2D, xs as Tensor2D, as as Tensor2D, bs as Tensor2D, { scale: 2, ...options });
    const trained = 'factorGradients' in options ? [x] : [x, a, b];
    const gradients = (run: typeof one): Tensor[] =>
      grads((...args: Tensor[]) => run(...args, ...[x, a, b].slice(args.length)))(trained, dy);
    const [ours, theirs] = [gradients(one), gradients(two)];
    expect(await differ(ours, theirs)).toBeLessThan(2e-5);
    const [y, z] = [one(x, a, b), tidy(() => two(x, a, b))];
    expect(await differ([y], [z])).toBeLessThan(1e-5);
    for (const tensor of [...ours, ...theirs, ...sides, ...Object.values(frozen.parts), y, z]) tensor.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('gives the same gradients bit for bit where nobody reads its value', async () => {
    const before = memory().numTensors;
    const { matrix: frozen, sides } = make();
    const [x, a, b, dy] = sides;
    const [read, unread] = [false, true].map((quiet) =>
      grads((xs: Tensor, as: Tensor, bs: Tensor) =>
        loraProduct(xs as Tensor2D, frozen, as as Tensor2D, bs as Tensor2D, { scale: 2, unread: quiet, dropout }),
      )([x, a, b], dy),
    ) as [Tensor[], Tensor[]];
    expect(await differ(read, unread)).toBe(0);
    for (const tensor of [...read, ...unread, ...sides, ...Object.values(frozen.parts)]) tensor.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
