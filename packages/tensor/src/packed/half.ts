const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);
const powers = Float64Array.from({ length: 31 }, (_, exponent) => 2 ** (exponent - 25));

/** IEEE half, given as its 16 bits, to a number; subnormals, infinities and NaN included. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1024 + fraction) * powers[exponent]!;
}

/** The nearest IEEE half of a number as 16 bits, ties to even; what is too large becomes an infinity. */
export function floatToHalf(value: number): number {
  float[0] = value;
  const bits = word[0]!;
  const sign = (bits >>> 16) & 0x8000;
  const exponent = (bits >>> 23) & 255;
  const fraction = bits & 0x7fffff;
  if (exponent === 255) return sign | 0x7c00 | (fraction === 0 ? 0 : 0x200 | (fraction >> 13));
  const shifted = exponent - 127 + 15;
  if (shifted >= 31) return sign | 0x7c00;
  if (shifted <= 0) {
    if (shifted < -10) return sign;
    return sign | roundToEven(fraction | 0x800000, 14 - shifted);
  }
  // A carry out of the fraction runs into the exponent, which is just what rounding up to the next power of two needs.
  return sign | ((shifted << 10) + roundToEven(fraction, 13));
}

function roundToEven(value: number, shift: number): number {
  const kept = value >>> shift;
  const rest = value & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return rest > half || (rest === half && (kept & 1) === 1) ? kept + 1 : kept;
}

/** bfloat16 bits to a number. */
export function bfloatToFloat(bits: number): number {
  word[0] = bits << 16;
  return float[0]!;
}

/** The nearest bfloat16 as 16 bits, ties to even; NaN stays NaN. */
export function floatToBfloat(value: number): number {
  float[0] = value;
  const bits = word[0]!;
  if (Number.isNaN(value)) return (bits >>> 16) | 64;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}
