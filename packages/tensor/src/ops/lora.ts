import { add, matMul, mul, reshape, type Tensor, type Tensor2D } from '../tfjs.ts';
import { noiseOp, type NoiseAttributes } from '../noise.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { packedMatMulOp } from './packed-matmul.ts';
import { unwritten } from './unwritten.ts';
import type { PackedShape } from '../packed/layout.ts';

interface LoraAttributes {
  readonly scale: number;
  /** A mask over x: what it keeps is divided by its keep-probability. */
  readonly dropout?: NoiseAttributes | undefined;
}

/**
 * Inputs base [rows, out], x [rows, in], a [rank, in], b [out, rank]. Outputs [base + scale·inner·bᵀ, inner = x·aᵀ [rows, rank]],
 * x under dropout; with `unread` the first is unwritten. The product b·a is never formed.
 */
export const loraOp: Op<{ base: Tensor; x: Tensor; a: Tensor; b: Tensor }, LoraAttributes & { readonly unread: boolean }> = {
  kernelName: 'NiwakiLora',
  reference: ({ base, x, a, b }, { scale, dropout, unread }) => {
    const inner = matMul(dropped(x, dropout), a, false, true);
    if (unread) return [unwritten(base.shape[0]!, base.shape[1]!), inner];
    return [add(base, matMul(mul(inner, scale), b, false, true)), inner];
  },
};

/** Inputs dy [rows, out], x, a, b as forward, inner as it gave. Outputs [dx, da, db]. */
export const loraGradOp: Op<{ dy: Tensor; x: Tensor; a: Tensor; b: Tensor; inner: Tensor }, LoraAttributes> = {
  kernelName: 'NiwakiLoraGrad',
  reference: ({ dy, x, a, b, inner }, { scale, dropout }) => {
    const dInner = mul(matMul(dy, b), scale);
    const dx = dropped(matMul(dInner, a), dropout);
    return [dx, matMul(dInner, dropped(x, dropout), true, false), mul(matMul(dy, inner, true, false), scale)];
  },
};

/** The mask is drawn again wherever it is needed: nothing stores it. */
function dropped(x: Tensor, dropout: NoiseAttributes | undefined): Tensor {
  return dropout === undefined ? x : mul(x, mul(reshape(runOp(noiseOp, {}, dropout)[0]!, x.shape), 1 / dropout.keep));
}

/** A matrix W (out, in) that gets no gradient, as products read it: f32 under the name `weight`, or the parts of a packed one. */
export interface FrozenMatrix {
  readonly parts: { readonly [name: string]: Tensor };
  readonly packed?: PackedShape | undefined;
}

type ProductInputs<X extends string> = { [name in X]: Tensor } & { [part: string]: Tensor };

/**
 * `loraOp` over base = x·Wᵀ, made and added to in one go. Inputs x, a, b and the parts of W, attributes its packed shape.
 * Outputs [x·Wᵀ + scale·inner·bᵀ, inner].
 */
export const loraProductOp: Op<ProductInputs<'x' | 'a' | 'b'>, LoraAttributes & Pick<FrozenMatrix, 'packed'> & { unread: boolean }> = {
  kernelName: 'NiwakiLoraProduct',
  reference: ({ x, a, b, ...parts }, { packed, ...attributes }) => {
    const base = attributes.unread ? unwritten(x.shape[0]!, b.shape[0]!) : multiply(x, { parts, packed }, { transposed: false });
    return runOp(loraOp, { base, x, a, b }, attributes);
  },
};

/** Inputs dy and those of `loraGradOp`, and the parts of W. Outputs [dx, that of the product with W included, da, db]. */
export const loraProductGradOp: Op<ProductInputs<'dy' | 'x' | 'a' | 'b' | 'inner'>, LoraAttributes & Pick<FrozenMatrix, 'packed'>> = {
  kernelName: 'NiwakiLoraProductGrad',
  reference: ({ dy, x, a, b, inner, ...parts }, { packed, ...attributes }) => {
    const [dx, da, db] = runOp(loraGradOp, { dy, x, a, b, inner }, attributes);
    return [add(multiply(dy, { parts, packed }, { transposed: true }), dx!), da!, db!];
  },
};

/** x·Wᵀ, or x·W where `transposed`. */
const multiply = (x: Tensor, { parts, packed }: FrozenMatrix, { transposed }: { transposed: boolean }): Tensor =>
  packed === undefined
    ? matMul(x, parts['weight']!, false, !transposed)
    : runOp(packedMatMulOp, { ...parts, x }, { ...packed, transposed })[0]!;

export interface LoraTailOptions extends LoraAttributes {
  /** Whether a and b want gradients, default true. Without, x and x·aᵀ are not kept. */
  readonly factorGradients?: boolean;
  /** Only the gradients are asked for: the result is `unwritten`, and entries of `base` are not read. */
  readonly unread?: boolean;
}

/**
 * The tail of a low-rank adapter: base + scale·(x·aᵀ)·bᵀ (Hu et al. 2021, eq. 3) as one node of the tape.
 * Saves a, b, x (shared with whoever else holds it) and x·aᵀ; never a dropped copy of x.
 * @param base [rows, out]
 * @param x [rows, in]
 * @param a [rank, in]
 * @param b [out, rank]
 */
export function loraTail(base: Tensor2D, x: Tensor2D, a: Tensor2D, b: Tensor2D, options: LoraTailOptions): Tensor2D {
  const { factorGradients = true, unread = false, ...attributes } = options;
  if (!factorGradients) {
    return withGradient(
      [base, x],
      (save) => {
        save([a, b]);
        return unread ? unwritten(...base.shape) : runOp(loraOp, { base, x, a, b }, { ...attributes, unread })[0]!;
      },
      (dy, [sa, sb]) => [dy, tailGradient(dy, sa!, sb!, attributes)],
    ) as Tensor2D;
  }
  return withGradient(
    [base, x, a, b],
    (save) => {
      const [y, inner] = runOp(loraOp, { base, x, a, b }, { ...attributes, unread });
      save([x, a, b, inner!]);
      return y!;
    },
    (dy, saved) => {
      const [sx, sa, sb, inner] = saved as [Tensor, Tensor, Tensor, Tensor];
      return [dy, ...runOp(loraGradOp, { dy, x: sx, a: sa, b: sb, inner }, attributes)];
    },
  ) as Tensor2D;
}

const tailGradient = (dy: Tensor, a: Tensor, b: Tensor, { scale, dropout }: LoraAttributes): Tensor =>
  dropped(matMul(mul(matMul(dy, b), scale), a), dropout);

/**
 * A frozen linear map with a low-rank adapter, x·Wᵀ + scale·(x·aᵀ)·bᵀ, as one node of the tape.
 * Saves what `loraTail` does, and the parts of W.
 * @param x [rows, in]
 * @param a [rank, in]
 * @param b [out, rank]
 */
export function loraProduct(x: Tensor2D, { parts, packed }: FrozenMatrix, a: Tensor2D, b: Tensor2D, options: LoraTailOptions): Tensor2D {
  const { factorGradients = true, unread = false, ...rest } = options;
  const attributes = { ...rest, packed };
  const names = Object.keys(parts);
  const again = (saved: readonly Tensor[]): FrozenMatrix['parts'] => Object.fromEntries(names.map((name, i) => [name, saved[i]!]));
  if (!factorGradients) {
    return withGradient(
      [x],
      (save) => {
        save([a, b, ...Object.values(parts)]);
        return unread ? unwritten(x.shape[0], b.shape[0]) : runOp(loraProductOp, { ...parts, x, a, b }, { ...attributes, unread })[0]!;
      },
      (dy, [sa, sb, ...sParts]) => [
        add(multiply(dy, { parts: again(sParts), packed }, { transposed: true }), tailGradient(dy, sa!, sb!, rest)),
      ],
    ) as Tensor2D;
  }
  return withGradient(
    [x, a, b],
    (save) => {
      const [y, inner] = runOp(loraProductOp, { ...parts, x, a, b }, { ...attributes, unread });
      // The parts too: read through a view they may be tensors of this pass alone.
      save([x, a, b, inner!, ...Object.values(parts)]);
      return y!;
    },
    (dy, [sx, sa, sb, inner, ...sParts]) =>
      runOp(loraProductGradOp, { ...again(sParts), dy, x: sx!, a: sa!, b: sb!, inner: inner! }, attributes),
  ) as Tensor2D;
}
