import { ConfigError, ShapeError } from '../errors.ts';
import { runOp, type Op } from '../op.ts';
import {
  add,
  cast,
  concat,
  floor,
  matMul,
  mul,
  reshape,
  slice,
  sub,
  tensor1d,
  tensor2d,
  tidy,
  type Tensor,
  type Tensor1D,
} from '../tfjs.ts';
import { unpackBytes } from './word-bytes.ts';

export interface FieldsOptions {
  /** Bits of one field: 1 to 8, or 16. */
  readonly bits: number;
  readonly count: number;
}

/** Fields unpacked at once by the reference: about eight f32 tensors of this size are alive together. A multiple of 32. */
const chunkFields = 2 ** 18;

/** Input words int32. Output [fields f32 [count]]: what `packBits` packed with its default order. On the device throughout. */
export const unpackFieldsOp: Op<{ words: Tensor }, FieldsOptions> = {
  kernelName: 'NiwakiUnpackFields',
  reference: ({ words }, { bits, count }) => {
    const parts: Tensor[] = [];
    for (let from = 0; from < count; from += chunkFields) {
      const some = Math.min(chunkFields, count - from);
      parts.push(
        tidy(() => {
          const own = slice(words as Tensor1D, [(from * bits) / 32], [Math.ceil((some * bits) / 32)]);
          return slice(fieldsOf(cast(unpackBytes(own), 'float32'), bits), [0], [some]);
        }),
      );
    }
    return [parts.length === 1 ? parts[0]! : concat(parts)];
  },
};

/** All fields that whole bytes hold. @param bytes f32 [n], 0 to 255 */
function fieldsOf(bytes: Tensor, bits: number): Tensor1D {
  if (bits === 8) return bytes as Tensor1D;
  if (bits === 16) {
    const pairs = reshape(bytes, [bytes.size / 2, 2]);
    return reshape(add(slice(pairs, [0, 0], [-1, 1]), mul(slice(pairs, [0, 1], [-1, 1]), 256)), [bytes.size / 2]);
  }
  if (8 % bits === 0) {
    const each = 8 / bits;
    // Quotients by rising powers; a field is one quotient without the next.
    const powers = tensor2d(
      Array.from({ length: each + 1 }, (_, k) => 2 ** (-bits * k)),
      [1, each + 1],
    );
    const quotients = floor(mul(reshape(bytes, [bytes.size, 1]), powers));
    const fields = sub(slice(quotients, [0, 0], [-1, each]), mul(slice(quotients, [0, 1], [-1, each]), 2 ** bits));
    return reshape(fields, [bytes.size * each]);
  }
  // Fields that straddle bytes: bit by bit.
  const count = Math.floor((bytes.size * 8) / bits);
  const single = slice(fieldsOf(bytes, 1), [0], [count * bits]);
  const weights = tensor2d(
    Array.from({ length: bits }, (_, k) => 2 ** k),
    [bits, 1],
  );
  return reshape(matMul(reshape(single, [count, bits]), weights), [count]);
}

/**
 * Unsigned fields of a few bits out of int32 words, as f32 [count]: masks and small indices, without reading back. The
 * result takes 4 bytes a field. Not differentiable.
 * @throws ShapeError where the words hold fewer fields
 */
export function unpackFields(words: Tensor, { bits, count }: FieldsOptions): Tensor1D {
  if (!(Number.isInteger(bits) && ((bits >= 1 && bits <= 8) || bits === 16))) {
    throw new ConfigError(`unpackFields: a field has 1 to 8 bits, or 16, got ${bits}`, { bits });
  }
  if (words.dtype !== 'int32' || words.size * 32 < count * bits) {
    throw new ShapeError(`unpackFields: ${count} fields of ${bits} bits take ${Math.ceil((count * bits) / 32)} words, got ${words.size}`, {
      count,
      bits,
      words: words.size,
      dtype: words.dtype,
    });
  }
  if (count === 0) return tensor1d([]);
  return runOp(unpackFieldsOp, { words }, { bits, count })[0] as Tensor1D;
}
