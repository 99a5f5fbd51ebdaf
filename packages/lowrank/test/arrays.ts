import { svd, tensor2d } from '@niwaki/tensor';

export const zeros = (length: number): number[] => Array.from({ length }, () => 0);

/** Numbers in (-1, 1) that no two seeds share. */
export const wave = (length: number, seed: number): number[] => Array.from({ length }, (_, i) => Math.sin(seed + i * (1.3 + seed / 7)));

/** Largest difference. */
export const gap = (given: ArrayLike<number>, expected: ArrayLike<number>): number =>
  Array.from(given).reduce(
    (most, value, i) => Math.max(most, Math.abs(value - expected[i]!)),
    given.length === expected.length ? 0 : Infinity,
  );

/** Singular values of a change, larger than rounding. */
export async function rankOf(values: readonly number[], shape: [number, number]): Promise<number> {
  const change = tensor2d([...values], shape);
  const { u, s, v } = await svd(change);
  const sizes = await s.data();
  for (const each of [change, u, s, v]) each.dispose();
  return sizes.filter((size) => size > 1e-4 * sizes[0]!).length;
}
