/** Fields of a few bits and what they place, on the host: loops of the cpu and wasm devices over their own memory. */
import type { FieldsOptions, GroupsShape } from '@niwaki/tensor';

export function unpackInto(words: Int32Array, fields: Float32Array, { bits, count }: FieldsOptions): void {
  const mask = 2 ** bits - 1;
  let word = 0;
  let shift = 0;
  for (let i = 0; i < count; i++) {
    let field = words[word]! >>> shift;
    shift += bits;
    if (shift >= 32) {
      shift -= 32;
      word++;
      // The part that the next word holds; with nothing of it there, a shift by 32 would be none.
      if (shift > 0) field |= words[word]! << (bits - shift);
    }
    fields[i] = field & mask;
  }
}

/** Calls for every stored value: its number, and its entry in the flat matrix. */
function eachPlace(words: Int32Array, { n, m, groups }: GroupsShape, visit: (value: number, entry: number) => void): void {
  const bits = Math.log2(m);
  const mask = m - 1;
  let word = 0;
  let shift = 0;
  for (let group = 0, value = 0; group < groups; group++) {
    for (let slot = 0; slot < n; slot++, value++) {
      let place = words[word]! >>> shift;
      shift += bits;
      if (shift >= 32) {
        shift -= 32;
        word++;
        if (shift > 0) place |= words[word]! << (bits - shift);
      }
      visit(value, group * m + (place & mask));
    }
  }
}

export function expandInto(words: Int32Array, values: Float32Array, dense: Float32Array, shape: GroupsShape): void {
  dense.fill(0);
  eachPlace(words, shape, (value, entry) => {
    dense[entry] = values[value]!;
  });
}

export function pickInto(words: Int32Array, dense: Float32Array, values: Float32Array, shape: GroupsShape): void {
  eachPlace(words, shape, (value, entry) => {
    values[value] = dense[entry]!;
  });
}
