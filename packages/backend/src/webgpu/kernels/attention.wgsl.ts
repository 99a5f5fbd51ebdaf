import { lanes, program, reduction, type Element, type Program } from '../program.ts';

/**
 * Attention in tiles of keys with an online softmax (Dao 2023, alg. 1): scores are never stored. A thread owns a query row
 * (forward, dq) or a key row (dk, dv) in registers; its workgroup shares the tiles it walks over. The query heads of one
 * kv head are folded into rows, row = (head within group) · time + t, so that nothing repeats K and V.
 */
export interface AttentionVariant {
  /** Entries of a head's vector. */
  readonly d: number;
  /** Whether keys at the front, those before `u.always`, are seen by every query that sees anything. */
  readonly led: boolean;
}

/** Threads of a workgroup, each with a row in its registers. */
export const rowLanes = 64;

/** Words of vec4 in a row, the last one padded with zeros. */
const quads = (d: number): number => Math.ceil(d / 4);

/** Rows of a tile: two tiles of them and a kilobyte for the rest fit the 16 KiB of workgroup memory that every device has. */
const tileOf = (d: number): number => Math.max(1, Math.min(32, Math.floor(480 / quads(d))));

const keyOf = ({ d, led }: AttentionVariant): string => `${d}${led ? '-led' : ''}`;

const vectorType = (d: number): Element => (d % 4 === 0 ? 'vec4<f32>' : 'f32');

/** load_name(row, c): word c of a row of `name`, whose vectors lie one behind the other. */
const loader = (name: string, d: number): string =>
  d % 4 === 0
    ? `fn load_${name}(row: u32, c: u32) -> vec4<f32> { return ${name}[row * ${d / 4}u + c]; }\n`
    : `fn load_${name}(row: u32, c: u32) -> vec4<f32> {
  var word = vec4<f32>(0.0);
  for (var i = 0u; i < min(4u, ${d}u - 4u * c); i++) { word[i] = ${name}[row * ${d}u + 4u * c + i]; }
  return word;
}
`;

const storer = (name: string, d: number): string =>
  d % 4 === 0
    ? `fn store_${name}(row: u32, c: u32, word: vec4<f32>) { ${name}[row * ${d / 4}u + c] = word; }\n`
    : `fn store_${name}(row: u32, c: u32, word: vec4<f32>) {
  for (var i = 0u; i < min(4u, ${d}u - 4u * c); i++) { ${name}[row * ${d}u + 4u * c + i] = word[i]; }
}
`;

const constants = (d: number): string => `
const QUADS = ${quads(d)}u;
const TILE = ${tileOf(d)}u;
`;

type Sizes = 'time' | 'keys' | 'heads' | 'kvHeads' | 'always' | 'scale';
const sizes = { time: 'u32', keys: 'u32', heads: 'u32', kvHeads: 'u32', always: 'u32', scale: 'f32' } as const;

/** Where a folded query row lies. Groups are (x: tiles of rows, y: kv head, z: batch). */
const queryRow = `
struct Query { live: bool, vector: u32, bound: u32, score: u32 }
fn queryRow(row: u32, kvHead: u32, batch: u32) -> Query {
  let perHead = u.heads / u.kvHeads;
  let head = kvHead * perHead + row / u.time;
  let bound = batch * u.time + row % u.time;
  return Query(row < perHead * u.time, bound * u.heads + head, bound, (batch * u.heads + head) * u.time + row % u.time);
}
fn keyRow(key: u32, kvHead: u32, batch: u32) -> u32 { return (batch * u.keys + key) * u.kvHeads + kvHead; }
`;

const boundReductions = reduction('least', 'min(a, b)', 'u32') + reduction('most', 'max(a, b)', 'u32');

/** The bounds of a query row as it reads them: its own keys from `low` on, those before `led` in front of them, all before `high`. */
const bounds = (from: string, to: string, led: boolean): string => `
    low = u32(max(${from}, 0));
    high = min(u32(max(${to}, 0)), u.keys);
    ${led ? `if (${from} < ${to}) { led = min(u.always, high); }` : ''}`;

/** Walks the tiles of keys that any thread of the workgroup sees; `use` runs for each key `j` this thread sees. */
const overKeys = (led: boolean, use: string): string => `
  let seen = row.live && (low < high${led ? ' || led > 0u' : ''});
  let own = least(select(u.keys, low, ${led ? 'row.live && low < high' : 'seen'}), lane);
  let last = most(select(0u, high, seen), lane);
  for (var j0 = ${led ? '0u' : 'own'}; j0 < last; j0 += TILE) {
    ${led ? 'if (j0 >= u.always && j0 + TILE <= own) { continue; }' : ''}
    for (var i = lane; i < TILE * QUADS; i += LANES) {
      let j = j0 + i / QUADS;
      if (j < last) {
        let key = keyRow(j, group.y, group.z);
        tileK[i] = load_k(key, i % QUADS);
        tileV[i] = load_v(key, i % QUADS);
      }
    }
    workgroupBarrier();
    if (seen) {
      for (var at = ${led ? 'select(max(low, j0), j0, j0 < led)' : 'max(low, j0)'}; at < min(high, min(last, j0 + TILE)); at++) {
        ${led ? 'if (at >= led && at < low) { continue; }' : ''}
        let j = (at - j0) * QUADS;
        var score = 0.0;
        for (var c = 0u; c < QUADS; c++) { score += dot(query[c], tileK[j + c]); }
        score *= u.scale;
        ${use}
      }
    }
    workgroupBarrier();
  }`;

const keyTiles = `
var<workgroup> tileK: array<vec4<f32>, TILE * QUADS>;
var<workgroup> tileV: array<vec4<f32>, TILE * QUADS>;
`;

/** y, and the log-sum-exp of each row; a row that sees nothing gives zeros. */
export function attentionForward({
  d,
  led,
}: AttentionVariant): Program<'q' | 'k' | 'v' | 'lowBound' | 'highBound', 'y' | 'logSumExp', Sizes> {
  const vector = vectorType(d);
  return program({
    key: `attention-${keyOf({ d, led })}`,
    inputs: { q: vector, k: vector, v: vector, lowBound: 'i32', highBound: 'i32' },
    outputs: { y: vector, logSumExp: 'f32' },
    uniforms: sizes,
    workgroup: rowLanes,
    declarations: () =>
      constants(d) + queryRow + boundReductions + keyTiles + loader('q', d) + loader('k', d) + loader('v', d) + storer('y', d),
    main: () => `
  let row = queryRow(group.x * LANES + lane, group.y, group.z);
  var low = 0u;
  var high = 0u;
${led ? '  var led = 0u;' : ''}
  var query: array<vec4<f32>, QUADS>;
  var sums: array<vec4<f32>, QUADS>;
  if (row.live) {
${bounds('lowBound[row.bound]', 'highBound[row.bound]', led)}
    for (var c = 0u; c < QUADS; c++) { query[c] = load_q(row.vector, c); }
  }
  var peak = -1e30;
  var total = 0.0;
${overKeys(
  led,
  `
        if (score > peak) {
          let shrink = exp(peak - score);
          total *= shrink;
          for (var c = 0u; c < QUADS; c++) { sums[c] *= shrink; }
          peak = score;
        }
        let weight = exp(score - peak);
        total += weight;
        for (var c = 0u; c < QUADS; c++) { sums[c] += weight * tileV[j + c]; }`,
)}
  if (row.live) {
    let share = select(0.0, 1.0 / total, seen);
    for (var c = 0u; c < QUADS; c++) { store_y(row.vector, c, sums[c] * share); }
    logSumExp[row.score] = select(0.0, peak + log(total), seen);
  }`,
  });
}

/** Widest head of `attentionOfOne`: a workgroup holds a row once. */
export const widestOfOne: number = 4 * lanes;

/**
 * The same of one query row a workgroup, as generation has it: threads share its keys, and then each a word of the values of
 * some of them. Groups are (x: head, y: batch).
 */
export function attentionOfOne({
  d,
  led,
}: AttentionVariant): Program<'q' | 'k' | 'v' | 'lowBound' | 'highBound', 'y' | 'logSumExp', Sizes> {
  const vector = vectorType(d);
  return program({
    key: `attention-one-${keyOf({ d, led })}`,
    inputs: { q: vector, k: vector, v: vector, lowBound: 'i32', highBound: 'i32' },
    outputs: { y: vector, logSumExp: 'f32' },
    uniforms: sizes,
    workgroup: lanes,
    declarations: () => `
const QUADS = ${quads(d)}u;
const PARTS = LANES / QUADS;
var<workgroup> keyBounds: vec3<u32>;
var<workgroup> query: array<vec4<f32>, QUADS>;
var<workgroup> weights: array<f32, LANES>;
var<workgroup> partSums: array<vec4<f32>, LANES>;
${queryRow}${reduction('largest', 'max(a, b)')}${reduction('whole', 'a + b')}${['q', 'k', 'v'].map((name) => loader(name, d)).join('')}${storer('y', d)}`,
    main: () => `
  let row = group.y * u.heads + group.x;
  let kvHead = group.x / (u.heads / u.kvHeads);
  if (lane == 0u) {
    var low = 0u;
    var high = 0u;
    var led = 0u;
${bounds('lowBound[group.y]', 'highBound[group.y]', led)}
    keyBounds = vec3<u32>(low, high, led);
  }
  for (var c = lane; c < QUADS; c += LANES) { query[c] = load_q(row, c); }
  let keys = workgroupUniformLoad(&keyBounds);
  let word = lane % QUADS;
  let part = lane / QUADS;
  var peak = -1e30;
  var total = 0.0;
  var sum = vec4<f32>(0.0);
  for (var j0 = select(keys.x, 0u, keys.z > 0u); j0 < keys.y; j0 += LANES) {
    if (j0 >= keys.z && j0 + LANES <= keys.x) { continue; }
    let j = j0 + lane;
    let sees = j < keys.y && (j >= keys.x || j < keys.z);
    var score = -1e30;
    if (sees) {
      let key = keyRow(j, kvHead, group.y);
      score = 0.0;
      for (var c = 0u; c < QUADS; c++) { score += dot(query[c], load_k(key, c)); }
      score *= u.scale;
    }
    let before = peak;
    peak = max(peak, largest(score, lane));
    let shrink = exp(before - peak);
    let weight = select(0.0, exp(score - peak), sees);
    weights[lane] = weight;
    total = total * shrink + whole(weight, lane);
    sum *= shrink;
    if (part < PARTS) {
      for (var i = part; i < min(LANES, keys.y - j0); i += PARTS) { sum += weights[i] * load_v(keyRow(j0 + i, kvHead, group.y), word); }
    }
  }
  partSums[lane] = sum;
  workgroupBarrier();
  if (lane < QUADS) {
    for (var i = lane + QUADS; i < PARTS * QUADS; i += QUADS) { sum += partSums[i]; }
    store_y(row, lane, sum * select(0.0, 1.0 / total, total > 0.0));
  }
  if (lane == 0u) { logSumExp[row] = select(0.0, peak + log(total), total > 0.0); }`,
  });
}

/**
 * What the backward kernels need of each query row, in one word so that they stay within eight buffers:
 * the bits of its log-sum-exp and of ⟨dy, y⟩, and its bounds.
 */
export function attentionRows({
  d,
}: Pick<AttentionVariant, 'd'>): Program<'dy' | 'y' | 'logSumExp' | 'lowBound' | 'highBound', 'facts', 'rows' | 'time' | 'heads'> {
  const vector = vectorType(d);
  return program({
    key: `attention-rows-${d}`,
    inputs: { dy: vector, y: vector, logSumExp: 'f32', lowBound: 'i32', highBound: 'i32' },
    outputs: { facts: 'vec4<i32>' },
    uniforms: { rows: 'u32', time: 'u32', heads: 'u32' },
    workgroup: lanes,
    declarations: constants(d) + loader('dy', d) + loader('y', d),
    main: `
  if (index >= u.rows) { return; }
  let t = index % u.time;
  let head = (index / u.time) % u.heads;
  let bound = index / (u.time * u.heads) * u.time + t;
  var along = 0.0;
  for (var c = 0u; c < QUADS; c++) { along += dot(load_dy(bound * u.heads + head, c), load_y(bound * u.heads + head, c)); }
  facts[index] = vec4<i32>(bitcast<i32>(logSumExp[index]), bitcast<i32>(along), lowBound[bound], highBound[bound]);`,
  });
}

/** dq = scale · Σ over keys of p · (⟨dy, v⟩ - ⟨dy, y⟩) · k, with p = exp(score - logSumExp) computed again. */
export function attentionQueryGradient({ d, led }: AttentionVariant): Program<'q' | 'k' | 'v' | 'dy' | 'facts', 'dq', Sizes> {
  const vector = vectorType(d);
  return program({
    key: `attention-dq-${keyOf({ d, led })}`,
    inputs: { q: vector, k: vector, v: vector, dy: vector, facts: 'vec4<i32>' },
    outputs: { dq: vector },
    uniforms: sizes,
    workgroup: rowLanes,
    declarations: () =>
      constants(d) +
      queryRow +
      boundReductions +
      keyTiles +
      ['q', 'k', 'v', 'dy'].map((name) => loader(name, d)).join('') +
      storer('dq', d),
    main: () => `
  let row = queryRow(group.x * LANES + lane, group.y, group.z);
  var low = 0u;
  var high = 0u;
${led ? '  var led = 0u;' : ''}
  var whole = 0.0;
  var along = 0.0;
  var query: array<vec4<f32>, QUADS>;
  var pull: array<vec4<f32>, QUADS>;
  var sums: array<vec4<f32>, QUADS>;
  if (row.live) {
    let fact = facts[row.score];
    whole = bitcast<f32>(fact.x);
    along = bitcast<f32>(fact.y);
${bounds('fact.z', 'fact.w', led)}
    for (var c = 0u; c < QUADS; c++) {
      query[c] = load_q(row.vector, c);
      pull[c] = load_dy(row.vector, c);
    }
  }
${overKeys(
  led,
  `
        var dp = 0.0;
        for (var c = 0u; c < QUADS; c++) { dp += dot(pull[c], tileV[j + c]); }
        let ds = exp(score - whole) * (dp - along) * u.scale;
        for (var c = 0u; c < QUADS; c++) { sums[c] += ds * tileK[j + c]; }`,
)}
  if (row.live) {
    for (var c = 0u; c < QUADS; c++) { store_dq(row.vector, c, sums[c]); }
  }`,
  });
}

/**
 * dk and dv of a key row: sums over every query row that sees it, or over `stretch` of them. Groups are (x: tiles of keys,
 * y: stretch · kvHeads + kv head, z: batch); stretches lie one behind the other in the results.
 */
export function attentionKeyGradient({
  d,
  led,
}: AttentionVariant): Program<'q' | 'k' | 'v' | 'dy' | 'facts', 'dk' | 'dv', Sizes | 'stretch'> {
  const vector = vectorType(d);
  return program({
    key: `attention-dkv-${keyOf({ d, led })}`,
    inputs: { q: vector, k: vector, v: vector, dy: vector, facts: 'vec4<i32>' },
    outputs: { dk: vector, dv: vector },
    uniforms: { ...sizes, stretch: 'u32' },
    workgroup: rowLanes,
    declarations: () => `${constants(d)}${queryRow}
var<workgroup> tileQ: array<vec4<f32>, TILE * QUADS>;
var<workgroup> tileDy: array<vec4<f32>, TILE * QUADS>;
var<workgroup> tileFacts: array<vec4<i32>, TILE>;
${['q', 'k', 'v', 'dy'].map((name) => loader(name, d)).join('')}${storer('dk', d)}${storer('dv', d)}`,
    main: () => `
  let j = group.x * LANES + lane;
  let live = j < u.keys;
  let part = group.y / u.kvHeads;
  let kvHead = group.y % u.kvHeads;
  let vector = keyRow(j, kvHead, group.z);
  let rows = min(u.heads / u.kvHeads * u.time, (part + 1u) * u.stretch);
  var key: array<vec4<f32>, QUADS>;
  var value: array<vec4<f32>, QUADS>;
  var keySums: array<vec4<f32>, QUADS>;
  var valueSums: array<vec4<f32>, QUADS>;
  if (live) {
    for (var c = 0u; c < QUADS; c++) {
      key[c] = load_k(vector, c);
      value[c] = load_v(vector, c);
    }
  }
  for (var r0 = part * u.stretch; r0 < rows; r0 += TILE) {
    for (var i = lane; i < TILE * QUADS; i += LANES) {
      let row = queryRow(r0 + i / QUADS, kvHead, group.z);
      if (row.live) {
        tileQ[i] = load_q(row.vector, i % QUADS);
        tileDy[i] = load_dy(row.vector, i % QUADS);
        if (i % QUADS == 0u) { tileFacts[i / QUADS] = facts[row.score]; }
      }
    }
    workgroupBarrier();
    for (var at = 0u; at < min(TILE, rows - r0); at++) {
      let fact = tileFacts[at];
      if (live && ${led ? '(i32(j) >= fact.z || (j < u.always && fact.z < fact.w))' : 'i32(j) >= fact.z'} && i32(j) < fact.w) {
        let r = at * QUADS;
        var score = 0.0;
        var dp = 0.0;
        for (var c = 0u; c < QUADS; c++) {
          score += dot(tileQ[r + c], key[c]);
          dp += dot(tileDy[r + c], value[c]);
        }
        let p = exp(score * u.scale - bitcast<f32>(fact.x));
        let ds = p * (dp - bitcast<f32>(fact.y)) * u.scale;
        for (var c = 0u; c < QUADS; c++) {
          keySums[c] += ds * tileQ[r + c];
          valueSums[c] += p * tileDy[r + c];
        }
      }
    }
    workgroupBarrier();
  }
  if (live) {
    let to = part * groups.z * u.keys * u.kvHeads + vector;
    for (var c = 0u; c < QUADS; c++) {
      store_dk(to, c, keySums[c]);
      store_dv(to, c, valueSums[c]);
    }
  }`,
  });
}

/** Sums over the stretches of `attentionKeyGradient`, in their order. */
export const attentionStretches: Program<'dkParts' | 'dvParts', 'dk' | 'dv', 'count' | 'parts'> = program({
  key: 'attention-stretches',
  inputs: { dkParts: 'f32', dvParts: 'f32' },
  outputs: { dk: 'f32', dv: 'f32' },
  uniforms: { count: 'u32', parts: 'u32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  var keySum = 0.0;
  var valueSum = 0.0;
  for (var part = 0u; part < u.parts; part++) {
    keySum += dkParts[part * u.count + index];
    valueSum += dvParts[part * u.count + index];
  }
  dk[index] = keySum;
  dv[index] = valueSum;`,
});
