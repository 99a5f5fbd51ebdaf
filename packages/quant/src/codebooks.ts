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
