import { lanes, program, type Program } from '../program.ts';

/** Keys of a workgroup. */
export const chunkKeys: number = lanes;

/** Keys outside of [0, count) lie in one bucket more. */
const staged = `
var<workgroup> chunk: array<u32, LANES>;
fn bucketOf(key: i32) -> u32 { return select(u.count, u32(key), key >= 0 && u32(key) < u.count); }
`;

/** Reads a chunk's buckets; past the last key lies none. */
const stage = `
  let at = groupIndex * LANES + lane;
  chunk[lane] = 0xffffffffu;
  if (at < u.keys) { chunk[lane] = bucketOf(keys[at]); }
  workgroupBarrier();`;

/** Keys of each bucket in each chunk [chunks, count + 1]. */
export const countKeys: Program<'keys', 'counts', 'keys' | 'count' | 'chunks'> = program({
  key: 'counting-sort-count',
  inputs: { keys: 'i32' },
  outputs: { counts: 'i32' },
  uniforms: { keys: 'u32', count: 'u32', chunks: 'u32' },
  workgroup: lanes,
  declarations: staged,
  main: `${stage}
  if (groupIndex >= u.chunks) { return; }
  for (var bucket = lane; bucket <= u.count; bucket += LANES) {
    var found = 0;
    for (var i = 0u; i < LANES; i++) { found += select(0, 1, chunk[i] == bucket); }
    counts[groupIndex * (u.count + 1u) + bucket] = found;
  }`,
});

/**
 * One workgroup: in counts, how many keys of the bucket earlier chunks have; in runs, how many keys earlier buckets have. A
 * thread has neighboring buckets, whose sums it keeps while those of the threads are summed.
 */
export const scanKeys: Program<never, 'counts' | 'runs', 'count' | 'chunks'> = program<never, 'counts' | 'runs', 'count' | 'chunks'>({
  key: 'counting-sort-scan',
  inputs: {},
  outputs: { counts: 'i32', runs: 'i32' },
  uniforms: { count: 'u32', chunks: 'u32' },
  workgroup: lanes,
  declarations: 'var<workgroup> sums: array<i32, LANES>;',
  main: `
  let each = u.count / LANES + 1u;
  let first = lane * each;
  let end = min(first + each, u.count + 1u);
  var own = 0;
  for (var bucket = first; bucket < end; bucket++) {
    var found = 0;
    for (var chunk = 0u; chunk < u.chunks; chunk++) {
      let at = chunk * (u.count + 1u) + bucket;
      let more = counts[at];
      counts[at] = found;
      found += more;
    }
    runs[bucket] = own;
    own += found;
  }
  sums[lane] = own;
  workgroupBarrier();
  var before = 0;
  for (var i = 0u; i < lane; i++) { before += sums[i]; }
  for (var bucket = first; bucket < end; bucket++) { runs[bucket] += before; }`,
});

/** Each key's place: after the earlier buckets, the earlier chunks, and the earlier keys of its own chunk. */
export const placeKeys: Program<'keys' | 'counts' | 'runs', 'order' | 'places', 'keys' | 'count'> = program({
  key: 'counting-sort-place',
  inputs: { keys: 'i32', counts: 'i32', runs: 'i32' },
  outputs: { order: 'i32', places: 'i32' },
  uniforms: { keys: 'u32', count: 'u32' },
  workgroup: lanes,
  declarations: staged,
  main: `${stage}
  if (at >= u.keys) { return; }
  let bucket = chunk[lane];
  var place = runs[bucket] + counts[groupIndex * (u.count + 1u) + bucket];
  for (var i = 0u; i < lane; i++) { place += select(0, 1, chunk[i] == bucket); }
  order[place] = i32(at);
  places[at] = place;`,
});
