import { describe, expect, it } from 'vitest';
import { createDraw, factorMoments, memory, noise, roundedUp, settledCodes, tensor1d, tensor2d } from '@niwaki/tensor';
import { affineStep, affineValue, type AffineStep } from '@niwaki/weights';
import { compensatedStart } from '../src/cbq-start.ts';

const [out, width, groupSize, bits, rows] = [16, 48, 24, 2, 64] as const;
const grid = 'asymmetric';
const breath = async (): Promise<void> => {};

async function numbers(name: string, count: number): Promise<Float32Array> {
  const values = noise([count], createDraw(6, 0).at(name), 'gaussian');
  const data = (await values.data()) as Float32Array;
  values.dispose();
  return data.slice();
}

/** Inputs whose columns resemble those beside them. */
async function inputs(): Promise<Float32Array> {
  const x = await numbers('x', rows * width);
  for (let i = 1; i < x.length; i++) if (i % width > 0) x[i]! += 0.9 * x[i - 1]!;
  return x;
}

function gramOf(x: Float32Array): Float64Array {
  const gram = new Float64Array(width * width);
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < width; i++) for (let j = 0; j < width; j++) gram[i * width + j]! += x[r * width + i]! * x[r * width + j]!;
  return gram;
}

/** Σ (x · (w - q)ᵀ)². */
function outputError(x: Float32Array, lost: readonly number[]): number {
  let total = 0;
  for (let r = 0; r < rows; r++) {
    for (let row = 0; row < out; row++) {
      let y = 0;
      for (let k = 0; k < width; k++) y += x[r * width + k]! * lost[row * width + k]!;
      total += y * y;
    }
  }
  return total;
}

describe("a rounding that starts at GPTQ's choice", () => {
  it('leans to one of the two codes around each entry, and loses less where it is settled at once', async () => {
    const before = memory().numTensors;
    const values = await numbers('w', out * width);
    const x = await inputs();
    // A step that is too small for the largest entries: these have one code only.
    const steps = Array.from({ length: values.length / groupSize }, (_, g): AffineStep => {
      const { scale, zero } = affineStep(values, [g * groupSize, (g + 1) * groupSize], { bits, grid });
      return { scale: Math.fround(0.8 * scale), zero };
    });
    const moments = await factorMoments(gramOf(x), width, { damping: 0.01, breath });
    const logits = await compensatedStart(values, steps, moments, { shape: [out, width], bits, groupSize, grid });
    const given = {
      w: tensor2d(values, [out, width]),
      logits,
      scales: tensor1d(steps.map(({ scale }) => scale)),
      zeros: tensor1d(steps.map(({ zero }) => zero)),
    };
    const [up, settled] = [roundedUp(given), settledCodes(given, 2 ** bits - 1)];
    const [h, codes] = [await up.data(), await settled.data()];
    const place = values.map((value, i) => Math.fround(value / steps[Math.floor(i / groupSize)]!.scale));
    let against = 0;
    for (const [i, at] of place.entries()) {
      const fraction = at - Math.floor(at);
      const [down, high] = [0.4 * fraction, fraction + 0.6 * (1 - fraction)];
      expect(Math.min(Math.abs(h[i]! - down), Math.abs(h[i]! - high))).toBeLessThan(1e-3);
      if (h[i]! > 0.5 !== fraction > 0.5) against++;
    }
    // It makes up for errors: not everything goes to the nearer side.
    expect(against).toBeGreaterThan(0.05 * values.length);
    const lost = (codeOf: (i: number) => number): number[] =>
      [...values].map((value, i) => value - affineValue(codeOf(i), steps[Math.floor(i / groupSize)]!));
    const nearest = (i: number): number => Math.min(Math.max(Math.round(place[i]!) + steps[Math.floor(i / groupSize)]!.zero, 0), 3);
    const started = outputError(
      x,
      lost((i) => codes[i]!),
    );
    expect(started).toBeLessThan(0.6 * outputError(x, lost(nearest)));
    for (const t of [up, settled, ...Object.values(given)]) t.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
