/**
 * Depthwise convolutions and their gradients: 16 channels at a time, then 4, along rows of the image that stay in the first
 * cache. Output channel c · multiplier + q sees input channel c.
 */
import { Convolution, FILTER_GRAD, firstInside, INPUT_GRAD, lastInside, RESULT } from './convolution';
import { madd } from './lanes';

/** Channels of the next strip: 16, or 4, of which the last may lack some. */
// @ts-ignore: decorator
@inline
function stripWidth(left: i32): i32 {
  return left >= 16 ? 16 : 4;
}

/** Strips of all channels. */
// @ts-ignore: decorator
@inline
function stripCount(channels: i32): i32 {
  return channels / 16 + ((channels & 15) + 3) / 4;
}

// @ts-ignore: decorator
@inline
function stripStart(channels: i32, strip: i32): i32 {
  const wide = channels / 16;
  return strip < wide ? strip * 16 : wide * 16 + (strip - wide) * 4;
}

export function depthwiseStrips(channels: i32): i32 {
  return stripCount(channels);
}

/** `count` of the channels first, first + step, ... of `places` neighboring places to out [places, width], zeros beyond. */
function stage(from: usize, places: i32, channels: i32, first: i32, step: i32, count: i32, width: i32, out: usize): void {
  let at = from + ((<usize>first) << 2);
  for (let p = 0; p < places; p++) {
    for (let i = 0; i < width; i++) store<f32>(out + ((<usize>i) << 2), i < count ? load<f32>(at + ((<usize>(i * step)) << 2)) : 0);
    at += (<usize>channels) << 2;
    out += (<usize>width) << 2;
  }
}

/** sums [width] += over `count` places: a · b, each row's sum by itself first, so that errors do not grow with the image. */
function addProducts(a: usize, stepA: usize, b: usize, stepB: usize, count: i32, width: i32, sums: usize): void {
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  if (width === 16) {
    for (; count > 0; count--) {
      s0 = madd(v128.load(a), v128.load(b), s0);
      s1 = madd(v128.load(a, 16), v128.load(b, 16), s1);
      s2 = madd(v128.load(a, 32), v128.load(b, 32), s2);
      s3 = madd(v128.load(a, 48), v128.load(b, 48), s3);
      a += stepA;
      b += stepB;
    }
    v128.store(sums, f32x4.add(v128.load(sums), s0));
    v128.store(sums, f32x4.add(v128.load(sums, 16), s1), 16);
    v128.store(sums, f32x4.add(v128.load(sums, 32), s2), 32);
    v128.store(sums, f32x4.add(v128.load(sums, 48), s3), 48);
    return;
  }
  for (; count > 1; count -= 2) {
    s0 = madd(v128.load(a), v128.load(b), s0);
    s1 = madd(v128.load(a + stepA), v128.load(b + stepB), s1);
    a += 2 * stepA;
    b += 2 * stepB;
  }
  if (count > 0) s0 = madd(v128.load(a), v128.load(b), s0);
  v128.store(sums, f32x4.add(v128.load(sums), f32x4.add(s0, s1)));
}

/** to += from · factors [width] over `count` places. */
function addScaled(to: usize, stepTo: usize, from: usize, stepFrom: usize, count: i32, width: i32, factors: usize): void {
  const f0 = v128.load(factors);
  if (width === 16) {
    const f1 = v128.load(factors, 16);
    const f2 = v128.load(factors, 32);
    const f3 = v128.load(factors, 48);
    for (; count > 0; count--) {
      v128.store(to, madd(v128.load(from), f0, v128.load(to)));
      v128.store(to, madd(v128.load(from, 16), f1, v128.load(to, 16)), 16);
      v128.store(to, madd(v128.load(from, 32), f2, v128.load(to, 32)), 32);
      v128.store(to, madd(v128.load(from, 48), f3, v128.load(to, 48)), 48);
      to += stepTo;
      from += stepFrom;
    }
    return;
  }
  for (; count > 0; count--) {
    v128.store(to, madd(v128.load(from), f0, v128.load(to)));
    to += stepTo;
    from += stepFrom;
  }
}

/** Bytes of scratch of each: a strip's rows of x (or dx) and of y (or dy), and its filter. */
export function depthwiseBytes(inWidth: i32, outWidth: i32, taps: i32): i32 {
  return (inWidth + outWidth + taps) * 64;
}

/** The inverse of `stage`. */
function unstage(from: usize, places: i32, channels: i32, first: i32, step: i32, count: i32, width: i32, out: usize): void {
  let to = out + ((<usize>first) << 2);
  for (let p = 0; p < places; p++) {
    for (let i = 0; i < count; i++) store<f32>(to + ((<usize>(i * step)) << 2), load<f32>(from + ((<usize>i) << 2)));
    from += (<usize>width) << 2;
    to += (<usize>channels) << 2;
  }
}

/**
 * What the taps of row `fy` of the filter add along a row of the image and a row of the results, whose places are `step` bytes
 * apart: to the results or to the image, with `taps` as room for the factors of one tap, from `channel` on; or to the sums
 * `taps` [filter height · width, width].
 */
// @ts-ignore: decorator
@inline
function addTaps(c: Convolution, product: i32, fy: i32, image: usize, stepImage: usize, results: usize, stepResults: usize, filter: usize, channel: i32, multiplier: i32, count: i32, width: i32, taps: usize): void {
  for (let fx = 0; fx < c.filterWidth; fx++) {
    const offset = fx * c.dilationWidth - c.left;
    const from = firstInside(offset, c.strideWidth);
    const to = lastInside(offset, c.strideWidth, c.inWidth, c.outWidth);
    if (from >= to) continue;
    const tap = fy * c.filterWidth + fx;
    const seen = image + (from * c.strideWidth + offset) * stepImage;
    const stepSeen = c.strideWidth * stepImage;
    const result = results + from * stepResults;
    if (product !== FILTER_GRAD) stage(filter + ((<usize>(tap * c.outChannels)) << 2), 1, 0, channel, multiplier, count, width, taps);
    if (product === RESULT) addScaled(result, stepResults, seen, stepSeen, to - from, width, taps);
    else if (product === INPUT_GRAD) addScaled(seen, stepSeen, result, stepResults, to - from, width, taps);
    else addProducts(seen, stepSeen, result, stepResults, to - from, width, taps + tap * ((<usize>width) << 2));
  }
}

/** One strip of row `oy` of an image's results, which comes in as zeros. */
// @ts-ignore: decorator
@inline
function addToResults(c: Convolution, x: usize, filter: usize, yRow: usize, image: i32, oy: i32, start: i32, scratch: usize): void {
  const channels = c.inChannels;
  const multiplier = c.outChannels / channels;
  const stagedX = scratch;
  const stagedY = stagedX + c.inWidth * 64;
  const factors = stagedY + c.outWidth * 64;
  const width = stripWidth(channels - start);
  const count = min(width, channels - start);
  const bytes = (<usize>width) << 2;
  const whole = count === width;
  const alone = whole && multiplier === 1;
  const a = alone ? yRow + ((<usize>start) << 2) : stagedY;
  const stepA = alone ? (<usize>channels) << 2 : bytes;
  for (let q = 0; q < multiplier; q++) {
    const channel = start * multiplier + q;
    if (!alone) memory.fill(stagedY, 0, c.outWidth * bytes);
    for (let fy = 0; fy < c.filterHeight; fy++) {
      const iy = oy * c.strideHeight + fy * c.dilationHeight - c.top;
      if (iy < 0 || iy >= c.inHeight) continue;
      const xRow = x + ((<usize>((image * c.inHeight + iy) * c.inWidth * channels)) << 2);
      if (!whole) stage(xRow, c.inWidth, channels, start, 1, count, width, stagedX);
      const b = whole ? xRow + ((<usize>start) << 2) : stagedX;
      const stepB = whole ? (<usize>channels) << 2 : bytes;
      addTaps(c, RESULT, fy, b, stepB, a, stepA, filter, channel, multiplier, count, width, factors);
    }
    if (!alone) unstage(stagedY, c.outWidth, c.outChannels, channel, multiplier, count, width, yRow);
  }
}

/** One strip of row `iy` of an image's gradient, which comes in as zeros. */
// @ts-ignore: decorator
@inline
function addToImage(c: Convolution, dy: usize, filter: usize, dxRow: usize, image: i32, iy: i32, start: i32, scratch: usize): void {
  const channels = c.inChannels;
  const multiplier = c.outChannels / channels;
  const staged = scratch;
  const stagedDy = staged + c.inWidth * 64;
  const factors = stagedDy + c.outWidth * 64;
  const width = stripWidth(channels - start);
  const count = min(width, channels - start);
  const bytes = (<usize>width) << 2;
  const whole = count === width;
  const alone = whole && multiplier === 1;
  if (!whole) memory.fill(staged, 0, c.inWidth * bytes);
  const a = whole ? dxRow + ((<usize>start) << 2) : staged;
  const stepA = whole ? (<usize>channels) << 2 : bytes;
  for (let fy = 0; fy < c.filterHeight; fy++) {
    const down = iy + c.top - fy * c.dilationHeight;
    const oy = down / c.strideHeight;
    if (down < 0 || oy * c.strideHeight !== down || oy >= c.outHeight) continue;
    const dyRow = dy + ((<usize>((image * c.outHeight + oy) * c.outWidth * c.outChannels)) << 2);
    for (let q = 0; q < multiplier; q++) {
      const channel = start * multiplier + q;
      if (!alone) stage(dyRow, c.outWidth, c.outChannels, channel, multiplier, count, width, stagedDy);
      const b = alone ? dyRow + ((<usize>start) << 2) : stagedDy;
      const stepB = alone ? (<usize>c.outChannels) << 2 : bytes;
      addTaps(c, INPUT_GRAD, fy, a, stepA, b, stepB, filter, channel, multiplier, count, width, factors);
    }
  }
  if (!whole) unstage(staged, c.inWidth, channels, start, 1, count, width, dxRow);
}

/** Rows [first, last) of `to`, all results or all images' gradients of `height` rows each, strip by strip. */
// @ts-ignore: decorator
@inline
function eachRow(c: Convolution, product: i32, from: usize, filter: usize, to: usize, height: i32, rowLength: i32, first: i32, last: i32, scratch: usize): void {
  const strips = stripCount(c.inChannels);
  const rowBytes = (<usize>rowLength) << 2;
  for (let row = first; row < last; row++) {
    const image = row / height;
    const own = row - image * height;
    const at = to + row * rowBytes;
    memory.fill(at, 0, rowBytes);
    for (let strip = 0; strip < strips; strip++) {
      const start = stripStart(c.inChannels, strip);
      if (product === RESULT) addToResults(c, from, filter, at, image, own, start, scratch);
      else addToImage(c, from, filter, at, image, own, start, scratch);
    }
  }
}

/** Task t: row t of y, of all results' rows. */
export function depthwise(sizes: usize, x: usize, filter: usize, y: usize, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  eachRow(c, RESULT, x, filter, y, c.outHeight, c.outWidth * c.outChannels, first, last, scratch);
}

/** Task t: row t of dx, of all images' rows. */
export function depthwiseInputGrad(sizes: usize, dy: usize, filter: usize, dx: usize, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  eachRow(c, INPUT_GRAD, dy, filter, dx, c.inHeight, c.inWidth * c.inChannels, first, last, scratch);
}

/** Task t: one strip of one slab's share, out[slab] [filter height, width, in, multiplier], over `slabRows` rows of the results. */
export function depthwiseFilterGrad(sizes: usize, x: usize, dy: usize, out: usize, slabRows: i32, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  const channels = c.inChannels;
  const multiplier = c.outChannels / channels;
  const strips = stripCount(channels);
  const taps = c.filterHeight * c.filterWidth;
  const rows = c.batch * c.outHeight;
  const stagedX = scratch;
  const stagedDy = stagedX + c.inWidth * 64;
  const sums = stagedDy + c.outWidth * 64;
  for (let task = first; task < last; task++) {
    const slab = task / strips;
    const start = stripStart(channels, task % strips);
    const width = stripWidth(channels - start);
    const count = min(width, channels - start);
    const bytes = (<usize>width) << 2;
    const end = min(rows, (slab + 1) * slabRows);
    for (let q = 0; q < multiplier; q++) {
      memory.fill(sums, 0, taps * bytes);
      const alone = multiplier === 1 && count === width;
      for (let row = slab * slabRows; row < end; row++) {
        const image = row / c.outHeight;
        const oy = row - image * c.outHeight;
        const dyRow = dy + ((<usize>(row * c.outWidth * c.outChannels)) << 2);
        if (!alone) stage(dyRow, c.outWidth, c.outChannels, start * multiplier + q, multiplier, count, width, stagedDy);
        const b = alone ? dyRow + ((<usize>start) << 2) : stagedDy;
        const stepB = alone ? (<usize>c.outChannels) << 2 : bytes;
        for (let fy = 0; fy < c.filterHeight; fy++) {
          const iy = oy * c.strideHeight + fy * c.dilationHeight - c.top;
          if (iy < 0 || iy >= c.inHeight) continue;
          const xRow = x + ((<usize>((image * c.inHeight + iy) * c.inWidth * channels)) << 2);
          if (count !== width) stage(xRow, c.inWidth, channels, start, 1, count, width, stagedX);
          const a = count === width ? xRow + ((<usize>start) << 2) : stagedX;
          const stepA = count === width ? (<usize>channels) << 2 : bytes;
          addTaps(c, FILTER_GRAD, fy, a, stepA, b, stepB, 0, 0, multiplier, count, width, sums);
        }
      }
      unstage(sums, taps, c.outChannels, start * multiplier + q, multiplier, count, width, out + ((<usize>(slab * taps * c.outChannels)) << 2));
    }
  }
}
