import { Convolution } from './convolution';
import { loadEntries } from './entries';
import { least } from './lanes';

/** Channels of one task. */
const STRIP: i32 = 16;

export function maxPoolStrips(channels: i32): i32 {
  return (channels + STRIP - 1) / STRIP;
}

// @ts-ignore: decorator
@inline
function give(dx: usize, place: i32, bytes: usize, value: f32): void {
  // A window without a number above -Infinity has no largest entry.
  if (place < 0) return;
  const at = dx + place * bytes;
  store<f32>(at, load<f32>(at) + value);
}

/** Task t: one strip of one image's dx: each window gives its dy to the first of its largest entries. */
export function maxPoolGrad(sizes: usize, x: usize, dy: usize, dx: usize, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  const channels = c.inChannels;
  const bytes = (<usize>channels) << 2;
  const strips = maxPoolStrips(channels);
  const area = c.inHeight * c.inWidth;
  for (let task = first; task < last; task++) {
    const image = task / strips;
    const start = (task % strips) * STRIP;
    const end = least(channels, start + STRIP);
    const from = x + image * area * bytes;
    const to = dx + image * area * bytes;
    for (let place = 0; place < area; place++) memory.fill(to + place * bytes + ((<usize>start) << 2), 0, (<usize>(end - start)) << 2);
    for (let oy = 0; oy < c.outHeight; oy++) {
      for (let ox = 0; ox < c.outWidth; ox++) {
        const given = dy + ((image * c.outHeight + oy) * c.outWidth + ox) * bytes;
        for (let channel = start; channel < end; channel += 4) {
          const offset = (<usize>channel) << 2;
          const left = end - channel;
          let best = f32x4.splat(-Infinity);
          let places = i32x4.splat(-1);
          for (let fy = 0; fy < c.filterHeight; fy++) {
            const iy = oy * c.strideHeight + fy * c.dilationHeight - c.top;
            if (iy < 0 || iy >= c.inHeight) continue;
            for (let fx = 0; fx < c.filterWidth; fx++) {
              const ix = ox * c.strideWidth + fx * c.dilationWidth - c.left;
              if (ix < 0 || ix >= c.inWidth) continue;
              const place = iy * c.inWidth + ix;
              const at = from + place * bytes + offset;
              const value = loadEntries(at, left);
              const above = f32x4.gt(value, best);
              best = v128.bitselect(value, best, above);
              places = v128.bitselect(i32x4.splat(place), places, above);
            }
          }
          give(to + offset, i32x4.extract_lane(places, 0), bytes, load<f32>(given + offset));
          if (left > 1) give(to + offset + 4, i32x4.extract_lane(places, 1), bytes, load<f32>(given + offset, 4));
          if (left > 2) give(to + offset + 8, i32x4.extract_lane(places, 2), bytes, load<f32>(given + offset, 8));
          if (left > 3) give(to + offset + 12, i32x4.extract_lane(places, 3), bytes, load<f32>(given + offset, 12));
        }
      }
    }
  }
}
