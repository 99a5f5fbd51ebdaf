const { fround } = Math;

/** The 16 values of 4-bit NormalFloat by code: quantiles of a normal distribution with an exact zero (QLoRA, eq. 4). */
export const nf4Codebook: Float32Array = Float32Array.of(
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
);

/** The 16 values of bitsandbytes' 4-bit float by code: bit 3 is the sign, zero has two codes, and the order is not ascending. */
export const fp4Codebook: Float32Array = Float32Array.from(
  [0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3],
  (value) => value / 12,
);

/**
 * The 256 sorted values of the signed dynamic 8-bit map (Dettmers et al. 2022, §2.1): the finest steps near zero, seven
 * decades of them. Not symmetric: the largest is 1, the smallest -0.9929688. Every operation rounds to f32, since files
 * hold these values and readers compare them.
 */
export const dynamicMap: Float32Array = makeDynamicMap();

function makeDynamicMap(): Float32Array {
  const values = [0, 1];
  for (let i = 0; i < 7; i++) {
    const edges = evenlySpaced(2 ** i + 1);
    const scale = fround(10 ** (i - 6));
    for (let j = 0; j < 2 ** i; j++) {
      const middle = fround(scale * fround(fround(edges[j]! + edges[j + 1]!) / 2));
      values.push(middle, -middle);
    }
  }
  return Float32Array.from(values).sort();
}

/** Points on [0.1, 1] as torch's linspace gives them: each from the nearer end, product and sum rounded once. */
function evenlySpaced(count: number): number[] {
  const start = fround(0.1);
  const step = fround(fround(1 - start) / (count - 1));
  return Array.from({ length: count }, (_, i) => fround(i < Math.floor(count / 2) ? start + step * i : 1 - step * (count - 1 - i)));
}
