/** Rope scaling of Llama 3 as a config says it. */
export interface Llama3Scaling {
  readonly factor: number;
  readonly low: number;
  readonly high: number;
  readonly trained: number;
}

/** What each of the headSize/2 frequencies is divided by under Llama 3's rule. */
export function llama3Divisors(
  { factor, low, high, trained }: Llama3Scaling,
  { theta, headSize }: { theta: number; headSize: number },
): number[] {
  return Array.from({ length: headSize / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / headSize);
    if (wavelength > trained / low) return factor;
    if (wavelength < trained / high) return 1;
    const smooth = (trained / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

/**
 * The Llama 3 settings behind a table of divisors, or undefined where no such setting gives it. Files keep the table
 * alone; the factor is its largest entry, the trained length follows from any entry between, with the usual 1 and 4.
 */
export function fitLlama3(divisors: readonly number[], rope: { theta: number; headSize: number }): Llama3Scaling | undefined {
  const factor = Math.max(...divisors);
  const between = divisors.findIndex((divisor) => divisor > 1.0001 && divisor < factor * 0.9999);
  if (between < 0 || divisors.length !== rope.headSize / 2) return undefined;
  const [low, high] = [1, 4];
  const smooth = (1 / divisors[between]! - 1 / factor) / (1 - 1 / factor);
  const wavelength = 2 * Math.PI * rope.theta ** ((2 * between) / rope.headSize);
  const scaling = { factor, low, high, trained: Math.round(wavelength * (smooth * (high - low) + low)) };
  const again = llama3Divisors(scaling, rope);
  return again.every((divisor, i) => Math.abs(divisor - divisors[i]!) <= 1e-5 * divisor) ? scaling : undefined;
}
