import { grads } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { add, loraTail, matMul, memory, mul, sum, tensor2d, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';

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

  it('carries the map of its input into every gradient', async () => {
    const [base, x, a, b, dy] = inputs();
    const mask = tensor2d(
      Float32Array.from({ length: 30 }, (_, i) => (i % 3 === 0 ? 0 : 1.5)),
      [5, 6],
    );
    const ours = grads((...args: Tensor[]) =>
      loraTail(...(args as [Tensor2D, Tensor2D, Tensor2D, Tensor2D]), { scale: 2, input: (v) => mul(v, mask) }),
    )([base, x, a, b], dy);
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
