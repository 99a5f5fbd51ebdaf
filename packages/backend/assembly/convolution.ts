/** What both kinds of convolution share: images are NHWC, filters [height, width, in, out]. */

/** Sizes of a convolution, as the caller wrote them: `convolutionFields` of src/wasm/kernels/convolution-sizes.ts. */
@unmanaged
export class Convolution {
  batch: i32;
  inHeight: i32;
  inWidth: i32;
  inChannels: i32;
  outHeight: i32;
  outWidth: i32;
  outChannels: i32;
  filterHeight: i32;
  filterWidth: i32;
  strideHeight: i32;
  strideWidth: i32;
  dilationHeight: i32;
  dilationWidth: i32;
  /** Rows and columns of zeros before the image. */
  top: i32;
  left: i32;
}

/** The products of a convolution: its result, and the gradients of its filter and of its image. */
export const RESULT: i32 = 0;
export const FILTER_GRAD: i32 = 1;
export const INPUT_GRAD: i32 = 2;

/** The first place whose window's tap, `offset` entries into the window less the padding, is inside of the image. */
// @ts-ignore: decorator
@inline
export function firstInside(offset: i32, stride: i32): i32 {
  return offset >= 0 ? 0 : (stride - 1 - offset) / stride;
}

/** One past the last such place, at most `count`. */
// @ts-ignore: decorator
@inline
export function lastInside(offset: i32, stride: i32, size: i32, count: i32): i32 {
  if (offset >= size) return 0;
  const last = (size - 1 - offset) / stride + 1;
  return last < count ? last : count;
}
