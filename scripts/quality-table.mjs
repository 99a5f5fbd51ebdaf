// Writes docs/generated/quality.md: what quantization and pruning cost a model, from what bench/quality.mjs and
// bench/sparsity.mjs measured into bench/results. `--check` writes nothing and fails where the file is out of date.
import { readdirSync, readFileSync } from 'node:fs';
import { isMain, writeOrCheck } from './generated-page.mjs';

const bitColumns = ['4 bits', '3 bits', '2 bits'];
const parts = ['50%', '60%', '70%'];
const groups = ['4:8', '2:4', '1:4'];

/** What the two benchmarks can measure: what a line is called, its rows' names, and the columns that it has. */
const quantizers = [
  ['[nearest rounding](../methods/integers), symmetric', 'rtn', ', symmetric'],
  ['nearest rounding', 'rtn', ''],
  ['nearest rounding, `mse`', 'rtn', ', mse'],
  ['[GPTQ](../methods/gptq)', 'gptq', ''],
  ['GPTQ, `actOrder`', 'gptq', ', act-order'],
  ['GPTQ, `mse`', 'gptq', ', mse'],
  ['GPTQ, `mse`, `staticGroups`, `actOrder`', 'gptq', ', mse, static, act-order'],
  ['[AWQ](../methods/awq)', 'awq', ''],
  ['[CBQ](../methods/cbq)', 'cbq', ''],
  ['CBQ, `window: 1`', 'cbq', ', window of 1'],
  ['CBQ, `rank: 5`', 'cbq', ', rank 5'],
  ['nearest rounding, `mse`, [activations](../methods/activations) of 8 bits', 'rtn', ', mse, 8-bit activations', ['4 bits']],
  ['nearest rounding, `mse`, activations of 4 bits', 'rtn', ', mse, 4-bit activations', ['4 bits']],
  ['CBQ, then activations of 4 bits', 'cbq', ', then 4-bit activations', ['4 bits']],
  ['CBQ fitted to activations of 8 bits', 'cbq', ', 8-bit activations', ['4 bits']],
  ['CBQ fitted to activations of 4 bits', 'cbq', ', 4-bit activations', ['4 bits']],
  ['CBQ fitted to activations of 4 bits, steps per tensor', 'cbq', ', 4-bit activations per tensor', ['4 bits']],
].map(([label, method, variant, columns = bitColumns]) => ({ label, name: (column) => `${method} ${column}${variant}`, columns }));
const pruners = [
  ['[magnitude](../methods/pruning), among all matrices', 'magnitude', ', global', parts],
  ['magnitude, in each matrix', 'magnitude', ', layer', parts],
  ['magnitude, in each row', 'magnitude', ', row', parts],
  ['magnitude, in each group', 'magnitude', '', groups],
  ['[Wanda](../methods/wanda)', 'wanda', '', [...parts, ...groups]],
  ['Wanda, stored packed', 'wanda', ', packed', groups],
  ['[DSnoT](../methods/dsnot) over magnitude', 'dsnot over magnitude', '', parts],
  ['DSnoT over Wanda', 'dsnot over wanda', '', [...parts, ...groups]],
  ['DSnoT over Wanda, all maps', 'dsnot over wanda', ', all', parts],
  ['[SparseGPT](../methods/sparsegpt)', 'sparsegpt', '', [...parts, ...groups]],
].map(([label, method, variant, columns]) => ({ label, name: (column) => `${method} ${column}${variant}`, columns }));
const kinds = {
  quantization: { title: 'Quantized', lines: quantizers, columns: bitColumns, before: ['f32', 'nf4'] },
  pruning: { title: 'Pruned', lines: pruners, columns: [...parts, ...groups], before: ['as it is'] },
};

const labels = { f32: 'f32', nf4: '[NF4](../methods/nf4)', 'as it is': 'f32' };

/** Where a model's weights come from, if not as its folder has them. */
const origins = {
  'SmolLM2-135M-Instruct':
    'Its weights are those of the published Q4_1 file, written as f32 with `saveModel`: they were rounded to 4 bits once.',
};

/** What was measured of niwaki-tiny, and explains some of what it does. */
const evenInputs = "the largest norm among a map's input columns is up to 9 times their median, and up to 1,082 times in SmolLM2-135M";
const narrowRows =
  'likely because its rows are narrow, 192 and 512 entries where the paper has 4,096 and more, and a swap moves a larger part of what Wanda chose; more swaps lose more ([pruning](../methods/pruning)).';

/**
 * What papers find: the first row's perplexity rises by less than `factor` times what the second one's does. `known` is
 * what is known where it does not, by model.
 */
const findings = [
  { claim: 'GPTQ loses less than nearest rounding at 3 bits', paper: '2210.17323', rows: ['gptq 3 bits', 'rtn 3 bits'] },
  { claim: 'AWQ loses less than nearest rounding at 3 bits', paper: '2306.00978', rows: ['awq 3 bits', 'rtn 3 bits'] },
  {
    claim: 'AWQ loses less than GPTQ at 3 bits',
    paper: '2306.00978',
    rows: ['awq 3 bits', 'gptq 3 bits'],
    known: {
      'niwaki-tiny': `likely because AWQ gains by inputs that stand out, which this model lacks: ${evenInputs}. GPTQ has 8,192 tokens to fit at most 512 columns.`,
    },
  },
  { claim: 'CBQ loses less than GPTQ at 2 bits', paper: '2312.07950', rows: ['cbq 2 bits', 'gptq 2 bits'] },
  { claim: 'CBQ loses less than AWQ at 2 bits', paper: '2312.07950', rows: ['cbq 2 bits', 'awq 2 bits'] },
  {
    claim: 'CBQ fitted to activations of 4 bits loses less than CBQ that they are rounded after',
    paper: '2312.07950',
    rows: ['cbq 4 bits, 4-bit activations', 'cbq 4 bits, then 4-bit activations'],
  },
  {
    claim: 'Wanda loses less than half of what magnitude does at 50%',
    paper: '2306.11695',
    rows: ['wanda 50%', 'magnitude 50%, layer'],
    factor: 0.5,
    known: { 'niwaki-tiny': `likely because magnitude errs most where inputs stand out, which this model lacks: ${evenInputs}.` },
  },
  { claim: 'Wanda loses less than magnitude at 50%', paper: '2306.11695', rows: ['wanda 50%', 'magnitude 50%, layer'] },
  {
    claim: 'SparseGPT loses less than half of what magnitude does at 50%',
    paper: '2301.00774',
    rows: ['sparsegpt 50%', 'magnitude 50%, layer'],
    factor: 0.5,
  },
  { claim: 'SparseGPT loses less than Wanda in 2:4', paper: '2306.11695', rows: ['sparsegpt 2:4', 'wanda 2:4'] },
  { claim: '4:8 loses less than 2:4, by Wanda', paper: '2306.11695', rows: ['wanda 4:8', 'wanda 2:4'] },
  {
    claim: 'DSnoT over Wanda loses less than Wanda at 60%',
    paper: '2310.08915',
    rows: ['dsnot over wanda 60%', 'wanda 60%'],
    known: { 'niwaki-tiny': narrowRows },
  },
  {
    claim: 'DSnoT over Wanda loses less than Wanda at 70%',
    paper: '2310.08915',
    rows: ['dsnot over wanda 70%', 'wanda 70%'],
    known: { 'niwaki-tiny': narrowRows },
  },
];

const table = (head, rows) =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');
const points = (value) => value.toFixed(2);
const thousands = (count) => count.toLocaleString('en-US');

/** How a run was measured, in a sentence. */
function conditions({ tokens, context, calibrationTokens, groupSize, machine, rows }) {
  const dates = rows.map(({ date }) => date).sort();
  const grouped = groupSize === undefined ? '' : `, groups of ${groupSize}`;
  return `${thousands(tokens)} tokens in windows of ${context}${grouped}; calibrated with ${thousands(calibrationTokens)} tokens of other speeches. ${machine}, ${[...new Set([dates[0], dates.at(-1)])].join(' to ')}.`;
}

/** The table of one run, and what of it is missing. */
function sectionOf(run) {
  const { title, lines, columns, before } = kinds[run.measures];
  const rows = new Map(run.rows.map((row) => [row.name, row]));
  const known = new Set([...before, ...lines.flatMap(({ name, columns: its }) => its.map(name))]);
  for (const name of rows.keys()) if (!known.has(name)) throw new Error(`${run.model}: no line of the page has a place for '${name}'`);

  const at = (line, column) => (line.columns.includes(column) ? rows.get(line.name(column)) : undefined);
  const start = before.filter((name) => rows.has(name)).map((name) => `${labels[name]} ${points(rows.get(name).perplexity)}`);
  const measured = lines
    .map(({ label, ...line }) => ({ label, cells: columns.map((column) => at(line, column)) }))
    .filter(({ cells }) => cells.some((cell) => cell !== undefined));
  const bits = (cells) => new Set(cells.filter((cell) => cell !== undefined).map(({ bitsAnEntry }) => points(bitsAnEntry)));
  const missing = [
    ...before.filter((name) => !rows.has(name)).map((name) => labels[name]),
    ...lines
      .map((line) => [line.label, line.columns.filter((column) => at(line, column) === undefined)])
      .filter(([, without]) => without.length > 0)
      .map(([label, without]) => `${label.replaceAll(/\[(.*?)\]\(.*?\)/g, '$1')} (${without.join(', ')})`),
  ];
  return [
    `### ${title}\n\n${conditions(run)}\n\n${start.join(', ')}.`,
    table(
      ['', ...columns, 'bits an entry'],
      measured.map(({ label, cells }) => [
        label,
        ...cells.map((cell) => (cell ? points(cell.perplexity) : '')),
        [...bits(cells)].join(' / '),
      ]),
    ),
    ...(missing.length > 0 ? [`Not measured: ${missing.join('; ')}.`] : []),
  ];
}

/** The papers' findings against the rows of one model, and under them what is known where they do not hold. */
function findingsOf(model, runs) {
  const rows = new Map(runs.flatMap((run) => run.rows.map((row) => [row.name, { ...row, base: baseOf(run) }])));
  const rise = (name) => (rows.has(name) ? rows.get(name).perplexity - rows.get(name).base : undefined);
  const told = findings.map((finding) => {
    const [less, more] = finding.rows.map(rise);
    const isMeasured = less !== undefined && more !== undefined;
    return { ...finding, rises: isMeasured ? [less, more] : [], holds: isMeasured ? less < (finding.factor ?? 1) * more : undefined };
  });
  const mark = { true: 'yes', false: '**no**', undefined: 'not measured' };
  const reasons = new Map();
  for (const { claim, known } of told.filter(({ holds }) => holds === false)) {
    const why = known?.[model] ?? 'why it does not is not known.';
    reasons.set(why, [...(reasons.get(why) ?? []), `*${claim}*`]);
  }
  return [
    '### As the papers find it',
    'A finding, by how much perplexity rises with what it names first and second, and whether it holds here.',
    table(
      ['finding', 'paper', 'rises', 'here'],
      told.map(({ claim, paper, rises, holds }) => [claim, paper, rises.map((value) => `+${points(value)}`).join(', '), mark[holds]]),
    ),
    ...(reasons.size > 0 ? [[...reasons].map(([why, claims]) => `- ${claims.join(', ')}: ${why}`).join('\n')] : []),
  ];
}

/** Perplexity of the model as it is. */
function baseOf({ model, measures, rows }) {
  const [name] = kinds[measures].before;
  const base = rows.find((row) => row.name === name);
  if (base === undefined) throw new Error(`${model}: the row '${name}' is missing, which all others are compared to`);
  return base.perplexity;
}

/**
 * The page.
 * @param runs what bench/quality.mjs and bench/sparsity.mjs wrote with --into
 * @throws Error for a row that has no place on the page
 */
export function pageOf(runs) {
  const models = [...new Set(runs.map(({ model }) => model))];
  const sections = [
    `<!-- Written by scripts/quality-table.mjs from bench/results. Do not edit. -->
# What it costs

Perplexity on speeches that were kept out, by method; less is better. All linear maps but the head are changed, the rest
stays in floats. \`node bench/quality.mjs\` and \`node bench/sparsity.mjs\` measure it, on a model of your own too.`,
  ];
  for (const model of models) {
    const runsOfModel = runs.filter((run) => run.model === model);
    sections.push(`## ${model}`, ...(origins[model] !== undefined ? [origins[model]] : []));
    sections.push(...runsOfModel.flatMap(sectionOf), ...findingsOf(model, runsOfModel));
  }
  return `${sections.join('\n\n')}\n`;
}

/** The runs that the repository holds: the small model first, quantization before pruning. */
export function storedRuns() {
  const folder = new URL('../bench/results/', import.meta.url);
  const runs = readdirSync(folder)
    .filter((name) => /^(quality|sparsity)-.*\.json$/.test(name))
    .map((name) => JSON.parse(readFileSync(new URL(name, folder), 'utf8')));
  const rank = ({ model, measures }) => `${model === 'niwaki-tiny' ? 0 : 1} ${model} ${measures === 'quantization' ? 0 : 1}`;
  return runs.sort((a, b) => (rank(a) < rank(b) ? -1 : 1));
}

if (isMain(import.meta.url)) {
  const runs = storedRuns();
  writeOrCheck('quality', pageOf(runs), { script: import.meta.url, told: `${runs.flatMap(({ rows }) => rows).length} rows` });
}
