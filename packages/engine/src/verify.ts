import { dispose, NumericError, tidy, type Tensor } from '@niwaki/tensor';
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
      const other = await difference(first, again[name]!);
      if (other === undefined) continue;
      const { at, was, is } = other;
      throw new NumericError(
        `stage '${path}' gave another '${name}' when it was computed again: entry ${at} is ${is}, first it was ${was}`,
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

/** Compares what a thin record of a stage would make again with what it was. */
export async function verifyRemade(pass: Pass, s: number): Promise<void> {
  const pairs = pass.remade(s);
  try {
    for (const [kept, again] of pairs) {
      const other = await difference(kept, again);
      if (other === undefined) continue;
      const { path } = pass.route.stages[s]!;
      const { at, was, is } = other;
      throw new NumericError(
        `in stage '${path}' a saved tensor [${again.shape}] is another when it is made again: entry ${at} is ${is}, first it was ${was}`,
        { stage: path, shape: again.shape, at, help: "An op's `remake` gives the bits of its forward: the same kernel, the same entries." },
      );
    }
  } finally {
    dispose(pairs.map(([, again]) => again));
  }
}

/** The first entry whose bits differ. */
async function difference(first: Tensor, second: Tensor): Promise<{ at: number; was: number; is: number } | undefined> {
  const [a, b] = await Promise.all([first.data(), second.data()]);
  const [was, is] = [bits(a), bits(b)];
  const at = was.findIndex((value, i) => value !== is[i]);
  return at < 0 ? undefined : { at, was: a[at]!, is: b[at]! };
}

const bits = (values: ArrayLike<number> & { buffer: ArrayBufferLike; byteOffset: number }): Int32Array =>
  new Int32Array(values.buffer, values.byteOffset, values.length);
