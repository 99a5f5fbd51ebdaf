/**
 * A convolution and its gradients as products. A row of `windows` is what the filter sees at one place of the result:
 * windows · filter is the result, and windowsᵀ · dy the filter's gradient. In turn an entry of the image sees the results that it took part in, and what it
 * sees times the filter is its gradient. Either is laid out for one pass over the depth and the rows of one task, never as
 * a whole.
 */
import { Convolution, FILTER_GRAD, INPUT_GRAD, RESULT } from './convolution';
import { multiplyBlock } from './gemm';
import { least } from './lanes';
import { DEPTH, packPanels, packTiles } from './packing';

/** Rows of the result of one task: whole row blocks of either build. */
const TASK_ROWS: i32 = 240;
const TASK_COLUMNS: i32 = 256;
const EDGE: i32 = 256;

export function convTaskRows(): i32 {
  return TASK_ROWS;
}

export function convTaskColumns(): i32 {
  return TASK_COLUMNS;
}

/** Bytes of scratch of each of the products. */
export function convScratchBytes(): i32 {
  return EDGE + (2 * TASK_ROWS + TASK_COLUMNS) * DEPTH * 4;
}

function fillZeros(at: usize, count: i32): void {
  for (let i = 0; i < count; i++) store<f32>(at + ((<usize>i) << 2), 0);
}

function copyRun(from: usize, to: usize, count: i32): void {
  const bytes = (<usize>count) << 2;
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(to + i, v128.load(from + i));
  for (; i < bytes; i += 4) store<f32>(to + i, load<f32>(from + i));
}

/** Entries [entry, entry + entries) of the windows at the places [place, place + places) to out [places, entries], zeros beyond the image. */
function layWindows(c: Convolution, x: usize, place: i32, places: i32, entry: i32, entries: i32, out: usize): void {
  const channels = c.inChannels;
  const row = c.filterWidth * channels;
  const width = c.inWidth * channels;
  const step = (<usize>entries) << 2;
  const end = entry + entries;
  for (let start = entry, stop = entry; start < end; start = stop) {
    const tap = start / channels;
    const tapRow = tap / c.filterWidth;
    // Neighbors in a row of the filter see neighbors in the image: one run, unless the taps are dilated.
    stop = least(end, c.dilationWidth === 1 ? (tapRow + 1) * row : (tap + 1) * channels);
    const count = stop - start;
    const down = tapRow * c.dilationHeight - c.top;
    const across = ((tap - tapRow * c.filterWidth) * c.dilationWidth - c.left) * channels + (start - tap * channels);
    let oneRow = place / c.outWidth;
    let ox = place - oneRow * c.outWidth;
    let image = oneRow / c.outHeight;
    let oy = oneRow - image * c.outHeight;
    let to = out + ((<usize>(start - entry)) << 2);
    for (let p = 0; p < places; p++) {
      const iy = oy * c.strideHeight + down;
      if (iy < 0 || iy >= c.inHeight) fillZeros(to, count);
      else {
        const first = ox * c.strideWidth * channels + across;
        const begin = first < 0 ? least(-first, count) : 0;
        const finish = first + count > width ? max(begin, width - first) : count;
        if (begin > 0) fillZeros(to, begin);
        const from = x + ((<usize>((image * c.inHeight + iy) * width + first + begin)) << 2);
        copyRun(from, to + ((<usize>begin) << 2), finish - begin);
        if (finish < count) fillZeros(to + ((<usize>finish) << 2), count - finish);
      }
      to += step;
      if (++ox === c.outWidth) {
        ox = 0;
        if (++oy === c.outHeight) {
          oy = 0;
          image++;
        }
      }
    }
  }
}

/** Entries [entry, entry + entries), by tap and channel of dy, of what the places [place, place + places) of the image see. */
function layResults(c: Convolution, dy: usize, place: i32, places: i32, entry: i32, entries: i32, out: usize): void {
  const channels = c.outChannels;
  const step = (<usize>entries) << 2;
  const end = entry + entries;
  for (let start = entry, stop = entry; start < end; start = stop) {
    const tap = start / channels;
    const tapRow = tap / c.filterWidth;
    stop = least(end, (tap + 1) * channels);
    const count = stop - start;
    const from = dy + ((<usize>(start - tap * channels)) << 2);
    const up = c.top - tapRow * c.dilationHeight;
    const back = c.left - (tap - tapRow * c.filterWidth) * c.dilationWidth;
    let oneRow = place / c.inWidth;
    let ix = place - oneRow * c.inWidth;
    let row = resultRow(c, oneRow, up);
    let to = out + ((<usize>(start - entry)) << 2);
    for (let p = 0; p < places; p++) {
      const across = ix + back;
      const ox = across / c.strideWidth;
      if (row < 0 || across < 0 || ox >= c.outWidth || ox * c.strideWidth !== across) fillZeros(to, count);
      else copyRun(from + ((<usize>((row * c.outWidth + ox) * channels)) << 2), to, count);
      to += step;
      if (++ix === c.inWidth) {
        ix = 0;
        row = resultRow(c, ++oneRow, up);
      }
    }
  }
}

/** The row of the results, of all images', that a tap ties to a row of the images; -1: none. */
function resultRow(c: Convolution, row: i32, up: i32): i32 {
  const image = row / c.inHeight;
  const down = row - image * c.inHeight + up;
  const oy = down / c.strideHeight;
  return down < 0 || oy >= c.outHeight || oy * c.strideHeight !== down ? -1 : image * c.outHeight + oy;
}

/** Panels of the entries [entry, entry + entries) by tap and out channel, of `columns` in channels from `column` on. */
function packFilter(c: Convolution, filter: usize, entry: i32, entries: i32, column: i32, columns: i32, panels: usize): void {
  const channels = c.outChannels;
  const end = entry + entries;
  for (let start = entry, stop = entry; start < end; start = stop) {
    const tap = start / channels;
    stop = least(end, (tap + 1) * channels);
    for (let n = 0; n < columns; n += 8) {
      const from = filter + ((<usize>((tap * c.inChannels + column + n) * channels + (start - tap * channels))) << 2);
      packPanels(from, channels, 1, least(8, columns - n), stop - start, panels + ((<usize>(n * entries + (start - entry) * 8)) << 2));
    }
  }
}

/**
 * One block of a product, out [rows, columns], summed over [start, end): the windows of `a` by the filter b, windowsᵀ of `a`
 * by dy = b, or what the image sees of dy = a by the filter b.
 */
function multiplyTask(c: Convolution, product: i32, a: usize, b: usize, out: usize, rows: i32, columns: i32, block: i32, start: i32, end: i32, scratch: usize): void {
  const across = blocksAcross(columns);
  const n = (block % across) * TASK_COLUMNS;
  const m = (block / across) * TASK_ROWS;
  const width = least(TASK_COLUMNS, columns - n);
  const height = least(TASK_ROWS, rows - m);
  const to = out + ((<usize>(m * columns + n)) << 2);
  const seen = scratch + EDGE;
  const tiles = seen + TASK_ROWS * DEPTH * 4;
  const panels = tiles + TASK_ROWS * DEPTH * 4;
  for (let k = start; k < end; k += DEPTH) {
    const depth = least(DEPTH, end - k);
    if (product === FILTER_GRAD) layWindows(c, a, k, depth, m, height, seen);
    else if (product === RESULT) layWindows(c, a, m, height, k, depth, seen);
    else layResults(c, a, m, height, k, depth, seen);
    if (product === FILTER_GRAD) packTiles(seen, height, 1, height, depth, tiles);
    else packTiles(seen, depth, 0, height, depth, tiles);
    if (product === INPUT_GRAD) packFilter(c, b, k, depth, n, width, panels);
    else packPanels(b + ((<usize>(k * columns + n)) << 2), columns, 0, width, depth, panels);
    multiplyBlock(height, width, depth, tiles, panels, to, columns, k > start ? 1 : 0, scratch);
  }
}

// @ts-ignore: decorator
@inline
function blocksAcross(columns: i32): i32 {
  return (columns + TASK_COLUMNS - 1) / TASK_COLUMNS;
}

/** Task t: one block of y [places of all results, out channels]. */
export function convolve(sizes: usize, x: usize, filter: usize, y: usize, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  const places = c.batch * c.outHeight * c.outWidth;
  const entries = c.filterHeight * c.filterWidth * c.inChannels;
  for (let task = first; task < last; task++) multiplyTask(c, RESULT, x, filter, y, places, c.outChannels, task, 0, entries, scratch);
}

/**
 * Task t: one block of one slab's share, out[slab] [filter height · width · in, out channels], summed over the slab's
 * `slabPlaces` places. Slabs follow from the shapes alone, so that their sum does not depend on who computed them.
 */
export function convFilterGrad(sizes: usize, x: usize, dy: usize, out: usize, slabPlaces: i32, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  const rows = c.filterHeight * c.filterWidth * c.inChannels;
  const columns = c.outChannels;
  const places = c.batch * c.outHeight * c.outWidth;
  const blocks = blocksAcross(columns) * ((rows + TASK_ROWS - 1) / TASK_ROWS);
  for (let task = first; task < last; task++) {
    const slab = task / blocks;
    const start = slab * slabPlaces;
    const share = out + ((<usize>(slab * rows * columns)) << 2);
    multiplyTask(c, FILTER_GRAD, x, dy, share, rows, columns, task % blocks, start, least(places, start + slabPlaces), scratch);
  }
}

/** Task t: one block of dx [places of all images, in channels]. */
export function convInputGrad(sizes: usize, dy: usize, filter: usize, dx: usize, first: i32, last: i32, scratch: usize): void {
  const c = changetype<Convolution>(sizes);
  const places = c.batch * c.inHeight * c.inWidth;
  const entries = c.filterHeight * c.filterWidth * c.outChannels;
  for (let task = first; task < last; task++) multiplyTask(c, INPUT_GRAD, dy, filter, dx, places, c.inChannels, task, 0, entries, scratch);
}
