import {
  add,
  loraProduct,
  loraTail,
  mul,
  noise,
  noiseAttributes,
  reshape,
  sub,
  tidy,
  type Noise,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { lowRank, type Call, type Weight } from '@niwaki/weights';
import type { Next, Site } from '@niwaki/nn';
import type { Initializer } from './initialization.ts';
import { cachedNorm, ratio, rescale, rowNorms } from './direction.ts';
import { adapterParameter } from '@niwaki/peft';
import type { LoraAdapter, LoraSpec, StartPair } from './lora-adapter.ts';
import { loraScale } from './lora-options.ts';

/** Starting or loaded values; the adapter takes the tensors over. */
export interface LinearValues {
  /** [rank, in] */
  readonly a: Tensor2D;
  /** [out, rank] */
  readonly b: Tensor2D;
  /** [out], `lora_bias`. */
  readonly bias?: Tensor1D | undefined;
  /** [out], DoRA: m; start it with the norms of the rows of W + s·B·A. */
  readonly magnitude?: Tensor1D | undefined;
  /** Where the start took the place of a part of the base: copies of the first a and b. */
  readonly start?: { readonly a: Tensor2D; readonly b: Tensor2D } | undefined;
  /** What the start made of the base, if anything. */
  readonly rewrites?: Initializer['rewrites'];
}

/**
 * LoRA at a linear map: y = base(x) + s·(dropout(x)·Aᵀ)·Bᵀ (Hu et al. 2021), or DoRA's diag(m/‖V‖)·V with V = W + s·B·A.
 * Bytes: 4·rank·(in + out), and 8·out more for DoRA. Kept for the backward pass: x, x·Aᵀ, and DoRA's [rows, out] product.
 */
export function loraLinear(spec: LoraSpec, values: LinearValues): LoraAdapter {
  const { path, point, name, rank, rslora, dropout, ownBias } = spec;
  const parameter = (slot: string, value: Tensor, role: Parameter['role']): Parameter => adapterParameter(path, name, slot, value, role);
  const a = parameter('lora_A.weight', values.a, 'adapterA');
  const b = parameter('lora_B.weight', values.b, 'adapterB');
  const bias = values.bias && parameter('lora_B.bias', values.bias, 'bias');
  const magnitude = values.magnitude && parameter('lora_magnitude_vector', values.magnitude, 'magnitude');
  const norm = values.magnitude && parameter('lora_norm', values.magnitude.clone(), 'statistic');
  const normOf = norm && cachedNorm(norm, { a, b }, rowNorms);
  const start: StartPair | undefined = values.start && {
    a: parameter('lora_A0', values.start.a, 'statistic'),
    b: parameter('lora_B0', values.start.b, 'statistic'),
  };
  let { alpha } = spec;
  let strength = 1;
  const scale = (): number => strength * loraScale(alpha, rank, rslora);

  // Inverted dropout of the adapter's input, in training only. The mask is drawn again wherever it is needed: nothing stores
  // it, and a recomputed block sees the same one.
  const drops = (call: Call): boolean => call.training && dropout > 0;
  const maskAddress = (call: Call): Noise => call.draw.at(`${a.path}#dropout`, call.at.micro);
  const tracked = (call: Call): boolean => call.tracks(a) || call.tracks(b);
  const withBias = (y: Tensor2D, call: Call): Tensor2D => (bias === undefined ? y : add(y, mul(call.value(bias), scale())));

  const plain = (x: Tensor2D, next: Next, call: Call): Tensor2D => {
    const [av, bv] = [call.value(a) as Tensor2D, call.value(b) as Tensor2D];
    const options = {
      scale: scale(),
      factorGradients: tracked(call),
      unread: call.unread === true,
      dropout: drops(call) ? noiseAttributes(x.shape, maskAddress(call), 'mask', { keep: 1 - dropout }) : undefined,
    };
    const product = next.product?.();
    if (product === undefined) return withBias(loraTail(next(x), x, av, bv, options), call);
    const y = loraProduct(x, product.matrix, av, bv, options);
    return withBias(product.bias === undefined ? y : add(y, product.bias), call);
  };

  const directed = (x: Tensor2D, next: Next, call: Call, site: Site, m: Parameter): Tensor2D => {
    const weight = site.weight!;
    const [av, bv, mv] = [call.value(a) as Tensor2D, call.value(b) as Tensor2D, call.value(m) as Tensor1D];
    const n = normOf!(weight, call, scale());
    const siteBias = ownBias ?? site.bias;
    const offset = siteBias && call.value(siteBias);
    const y = next(x);
    if (!drops(call)) {
      const z = withBias(
        loraTail(offset === undefined ? y : sub(y, offset), x, av, bv, { scale: scale(), factorGradients: tracked(call) }),
        call,
      );
      const turned = rescale(z, mv, n);
      return offset === undefined ? turned : add(turned, offset);
    }
    // Both parts of V must see the same dropped input, so the base is applied to it a second time.
    const keep = 1 - dropout;
    const seen: Tensor2D = mul(x, mul(noise(x.shape, maskAddress(call), 'mask', { keep }), 1 / keep));
    const own = weight.apply(seen, call);
    const z = withBias(loraTail(own, seen, av, bv, { scale: scale(), factorGradients: tracked(call) }), call);
    return add(y, sub(rescale(z, mv, n), own));
  };

  const delta = magnitude === undefined && bias === undefined ? { delta: () => lowRank({ a, b, scale: scale() }) } : {};
  return {
    kind: magnitude === undefined ? 'lora' : 'dora',
    point,
    parameters: {
      'lora_A.weight': a,
      'lora_B.weight': b,
      ...(bias && { 'lora_B.bias': bias }),
      ...(magnitude && { lora_magnitude_vector: magnitude }),
      ...(norm && { norm }),
      ...(start && { lora_A0: start.a, lora_B0: start.b }),
    },
    rank,
    rslora,
    get alpha() {
      return alpha;
    },
    set alpha(value: number) {
      alpha = value;
    },
    get strength() {
      return strength;
    },
    set strength(value: number) {
      strength = value;
    },
    get scale() {
      return scale();
    },
    apply: (x, next, call, site) =>
      magnitude === undefined ? plain(x as Tensor2D, next, call) : directed(x as Tensor2D, next, call, site, magnitude),
    ...delta,
    merge: async (weight, siteBias, base = weight) =>
      tidy(() => {
        const factors = { a: a.read() as Tensor2D, b: b.read() as Tensor2D };
        const change = lowRank({ a, b, scale: scale() }).dense();
        const sum = add(weight.dense(), change) as Tensor2D;
        const turn = magnitude && ratio(magnitude.read(), rowNorms(base, factors, scale()));
        const added = bias && mul(bias.read(), scale());
        const turned = added && turn ? mul(added, turn) : added;
        return {
          matrix: turn === undefined ? sum : (mul(sum, reshape(turn, [-1, 1])) as Tensor2D),
          ...(turned && { bias: siteBias === undefined ? turned : add(siteBias.read(), turned) }),
        };
      }),
    ...(start && { start }),
    ...(start &&
      values.rewrites === 'residual' && {
        original: (base: Weight) =>
          tidy(() => add(base.dense(), lowRank({ ...start, scale: loraScale(alpha, rank, rslora) }).dense()) as Tensor2D),
      }),
    startsFrom: values.rewrites === undefined ? 'base' : 'rewritten',
    ...(magnitude && { gradient: 'surrogate' as const }),
  };
}
