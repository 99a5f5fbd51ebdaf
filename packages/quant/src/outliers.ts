export interface OutlierSplit {
  /** Where candidates begin: Q₃ + 1.5 (Q₃ - Q₁), quartiles interpolated linearly. */
  readonly threshold: number;
  /** The largest magnitude that is no outlier: all above it are. */
  readonly bound: number;
  /** For each number of candidates that are spared, the smallest first: (gap)² - their variance. */
  readonly scores: readonly number[];
}

/** More than this are sampled evenly. */
const mostSorted = 1_000_000;

/**
 * Coarse-to-fine detection of outliers (CBQ, CFP): what lies far above the quartiles is a candidate, and candidates are cut
 * where the gap is wide and what lies below it close together. Memory: a sorted copy, at most 4 MB.
 * @param magnitudes |w| of a matrix, or the largest |x| of each channel
 * @returns undefined where nothing is a candidate
 */
export function splitOutliers(magnitudes: Float32Array): OutlierSplit | undefined {
  const stride = Math.ceil(magnitudes.length / mostSorted);
  const sorted = stride > 1 ? magnitudes.filter((_, i) => i % stride === 0) : magnitudes.slice();
  sorted.sort();
  const [first, third] = [quantile(sorted, 0.25), quantile(sorted, 0.75)];
  const threshold = third + 1.5 * (third - first);
  const from = sorted.findIndex((value) => value > threshold);
  if (from < 0) return undefined;
  const scores: number[] = [];
  let [sum, squares] = [0, 0];
  let best = 0;
  for (let c = 0; from + c < sorted.length; c++) {
    const next = sorted[from + c]!;
    // Nothing lies below the first where the quartiles are one number.
    const gap = next - (sorted[from + c - 1] ?? 0);
    const variance = c === 0 ? 0 : squares / c - (sum / c) ** 2;
    scores.push(gap * gap - variance);
    if (scores[c]! > scores[best]!) best = c;
    sum += next;
    squares += next * next;
  }
  return { threshold, bound: sorted[from + best - 1] ?? 0, scores };
}

function quantile(sorted: Float32Array, part: number): number {
  const at = part * (sorted.length - 1);
  const below = Math.floor(at);
  const value = sorted[below]!;
  return value + (at - below) * ((sorted[below + 1] ?? value) - value);
}
