import { NumericError, tidy } from '@niwaki/tensor';
import type { Pass } from './pass.ts';

/** Reads a recomputed stage and its first forward back and compares the bits: draws and choices must replay. */
export async function verifySame(pass: Pass, s: number): Promise<void> {
  const given = pass.given(s);
  if (given === undefined) return;
  const { path } = pass.route.stages[s]!;
  const again = tidy(() => {
    const { tape } = pass.record(s, (call) => pass.route.stages[s]!.run(pass.entering(s), call));
    tape.dispose();
    return tape.value;
  });
  try {
    for (const [name, first] of Object.entries(given)) {
      const [a, b] = await Promise.all([first.data(), again[name]!.data()]);
      const [was, is] = [bits(a), bits(b)];
      const at = was.findIndex((value, i) => value !== is[i]);
      if (at < 0) continue;
      throw new NumericError(
        `stage '${path}' gave another '${name}' when it was computed again: entry ${at} is ${b[at]}, first it was ${a[at]}`,
        {
          stage: path,
          stream: name,
          at,
          help: 'Take random numbers from call.draw and discrete choices from call.decide.',
        },
      );
    }
  } finally {
    const entering = Object.values(pass.entering(s));
    for (const [name, value] of Object.entries(again)) if (name in given && !entering.includes(value)) value.dispose();
  }
}

const bits = (values: ArrayLike<number> & { buffer: ArrayBufferLike; byteOffset: number }): Int32Array =>
  new Int32Array(values.buffer, values.byteOffset, values.length);
