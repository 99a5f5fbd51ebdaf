import { add, cast, floor, less, mul, reshape, scalar, slice, stack, sub, type Tensor, type Tensor1D } from '../tfjs.ts';

/** A number beside an int32 tensor: a plain one would make floats of both. */
export const whole = (value: number): Tensor => scalar(value, 'int32');

/** The four bytes of each word, lowest first, int32. No device has shifts among tfjs's ops: the highest byte is taken off first, what is left is exact in f32. */
export function unpackBytes(words: Tensor1D): Tensor {
  // The word rounded to f32 may reach the next multiple of 2^24: then what is left is negative, and one too many was taken.
  const near = cast(floor(mul(cast(words, 'float32'), 2 ** -24)), 'int32');
  const rest = sub(words, mul(near, whole(2 ** 24)));
  const over = cast(less(rest, whole(0)), 'int32');
  const high = cast(sub(near, over), 'float32');
  const low = cast(add(rest, mul(over, whole(2 ** 24))), 'float32');
  const third = floor(mul(low, 2 ** -16));
  const two = sub(low, mul(third, 2 ** 16));
  const second = floor(mul(two, 2 ** -8));
  const first = sub(two, mul(second, 2 ** 8));
  const fourth = add(high, mul(cast(less(high, 0), 'float32'), 2 ** 8));
  return reshape(cast(stack([first, second, third, fourth], 1), 'int32'), [words.size * 4]);
}

/** Codes as floats, a multiple of four of them, to words: three bytes are exact in f32, the fourth is added in whole numbers, which wrap. */
export function packCodes(codes: Tensor): Tensor1D {
  const count = codes.size / 4;
  const quads = reshape(codes, [count, 4]);
  const [a, b, c, d] = [0, 1, 2, 3].map((k) => reshape(slice(quads, [0, k], [count, 1]), [count])) as [Tensor, Tensor, Tensor, Tensor];
  const low = add(a, add(mul(b, 2 ** 8), mul(c, 2 ** 16)));
  return add(cast(low, 'int32'), mul(cast(d, 'int32'), whole(2 ** 24))) as Tensor1D;
}
