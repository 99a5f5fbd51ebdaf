/** Part of the normal distribution below the largest value of a book. */
const most = 0.9677083;

/**
 * The 2^bits values of NormalFloat by code, ascending from -1 to 1 (QLoRA, Dettmers et al. 2023, eq. 4, for any number of
 * bits): quantiles at even steps of probability, one step fewer below 0 than above, 0 itself at code 2^(bits-1) - 1.
 */
export function normalFloatBook(bits: number): Float32Array {
  const half = 2 ** (bits - 1);
  const step = most - 0.5;
  return Float32Array.from({ length: 2 * half }, (_, code) => {
    const place = code - (half - 1);
    // The lower half is the upper one of a book with one step fewer, mirrored: 0 comes out exact.
    const part = place < 0 ? -place / (half - 1) : place / half;
    return (Math.sign(place) * quantile(part * step)) / quantile(step);
  });
}

/** The x ≥ 0 for which a normal variable lies between 0 and x with the given probability, below 0.5. */
function quantile(probability: number): number {
  let x = 0;
  // The probability rises ever more slowly, so that Newton's steps from 0 never go too far; 20 are many.
  for (let i = 0; i < 20; i++) x += (probability - between(x)) / density(x);
  return x;
}

const density = (x: number): number => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

/** The probability of [0, x]: the density times x + x³/3 + x⁵/(3·5) + … */
function between(x: number): number {
  let [term, sum] = [x, x];
  for (let k = 1; k < 60; k++) {
    term *= (x * x) / (2 * k + 1);
    sum += term;
  }
  return sum * density(x);
}
