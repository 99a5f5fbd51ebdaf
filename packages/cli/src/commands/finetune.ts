import { recomputes } from '@niwaki/engine';
import { nodeFileSystem } from '@niwaki/hub';
import { kindOf, recipeNames } from '@niwaki/train';
import { AbortError, NotFoundError, parseRecipe, recipeKit, runRecipe, type Recipe, type RecipeEvent, type StepEvent } from 'niwaki';
import { Option, type Command } from 'commander';
import { count, natural, number, patterns, requantizeFlag } from '../flags.ts';
import { UsageError } from '../failure.ts';
import { inBytes, inCount, inTime } from '../number.ts';
import { createProgress, type Progress } from '../progress.ts';
import { checkOut } from '../out-folder.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

/** The recipe's names, and what belongs to this call alone. */
type FinetuneFlags = { readonly [name in keyof Recipe]?: Recipe[name] } & {
  readonly recipe?: string;
  readonly requantize?: boolean;
  readonly resume?: boolean;
  readonly json?: boolean;
};

/** The flags are the recipe's names in kebab case; with --recipe they go over what it says. */
export const finetuneFlags = (command: Command): Command =>
  command
    .description('train an adapter (or the whole model) on your data')
    .option('--recipe <file>', 'a recipe in JSON; flags go over it')
    .option('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny)')
    .option('--data <file>', 'a .jsonl or text file')
    .addOption(new Option('--split <how>', 'how a plain text becomes documents').choices(['whole', 'blank-line']))
    .option('--no-pack', 'one document a row')
    .option('--truncate', 'cut documents longer than the context')
    .option('--batches <file>', 'exact batches of token ids in JSON, one step each, instead of data')
    .option(
      '--prune <kind>',
      `prune the model first, half of its entries: ${Object.keys(recipeKit.prune).join(', ')}; other amounts in a recipe`,
    )
    .option('--quantize <kind>', `quantize the model first: ${Object.keys(recipeKit.quantize).join(', ')}`)
    .option(...requantizeFlag)
    .option('--calibrate <file>', 'text that wanda, sparsegpt, dsnot, gptq, awq and cbq look at, .jsonl or plain')
    .option('--calibrate-windows <n>', 'windows of it, at even distances over the file (default: 32)', count)
    .option('--calibrate-context <n>', "tokens of a window (default: 256, or the model's context where that is less)", count)
    .option('--adapt <kind>', `what trains: ${Object.keys(recipeKit.adapt).join(', ')}, or none (the whole model)`)
    .addOption(new Option('--at <patterns>', 'where the adapter goes: paths or patterns, separated by commas').argParser(patterns))
    .option('--rank <n>', 'of the adapter', count)
    .option('--alpha <x>', 'numerator of its scale', number)
    .option('--dropout <p>', 'of its input', number)
    .option('--init-adapter <dir>', 'start from a saved adapter')
    .option('--optimizer <kind>', 'adamw, aged-adamw, sgd, lion, sm3 or frugal; galore and q-galore in a recipe')
    .option('--learning-rate <x>', 'the highest', number)
    .option('--weight-decay <x>', 'decoupled', number)
    .option('--schedule <kind>', 'constant, linear, cosine or wsd')
    .option('--warmup <n>', 'steps, or below 1 that part of the run', number)
    .option('--clip <x>', "bound of the gradient's norm; 0 = off", number)
    .option('--steps <n>', 'optimizer steps', count)
    .option('--epochs <n>', 'passes over the data', count)
    .option('--batch-size <n>', 'rows of a micro-batch', count)
    .option('--context <n>', 'tokens of a row', count)
    .option('--accumulate <n>', 'micro-batches of a step', count)
    .option('--memory-budget <bytes>', 'of all tensors: what is free of it buys speed', count)
    .addOption(new Option('--recompute <what>', 'what backward computes again of every block, in place of a budget').choices(recomputes))
    .option('--seed <n>', 'of everything that is drawn', natural)
    .option('--evaluate <file>', 'a text whose loss is reported on the way')
    .option('--evaluate-every <n>', 'steps between', count)
    .option('--checkpoint-every <n>', 'steps between checkpoints', count)
    .option('--keep <n>', 'checkpoints kept', count)
    .addOption(new Option('--device <name>', 'where to compute').choices(['auto', 'cpu', 'wasm', 'webgpu']))
    .option('--threads <n>', 'threads of the wasm device', count)
    .option('--out <dir>', 'folder of the results')
    .option('--save-base', 'write the pruned or quantized model beside the adapter too; else it is made again when it is needed')
    .option('--resume', 'go on from the newest checkpoint in --out')
    .option('--json', 'one JSON object on stdout and nothing else');

/** Trains by a recipe; the folder gets the adapter, run.jsonl and the recipe. */
export async function runFinetune(flags: FinetuneFlags, terminal: Terminal): Promise<Result> {
  const recipe = await recipeOf(flags);
  const out = recipe.out!;
  await checkOut(out);
  const told = { refused: 0, resumed: flags.resume !== true, saved: undefined as number | undefined };
  const listen = (event: RecipeEvent): void => {
    if (event.kind === 'checkpoint') told.saved = event.step;
    if (event.kind === 'resume') told.resumed = true;
    if (event.kind === 'step' && !told.resumed) {
      terminal.err(`warning: --resume: ${out} holds no checkpoint, so the run began at its first step\n`);
      told.resumed = true;
    }
    if (event.kind === 'step' && !event.applied) told.refused += 1;
  };
  const bar = createProgress(terminal, 'training');
  const loading = createProgress(terminal, 'loading');
  const preparing = { prune: createProgress(terminal, 'pruning'), quantize: createProgress(terminal, 'quantizing') };
  try {
    const result = await runRecipe(recipe, {
      signal: terminal.signal,
      resume: flags.resume === true,
      onEvent: (event) => {
        listen(event);
        show(event, { terminal, bar, loading, preparing });
      },
    });
    bar.stop();
    const { steps, loss } = result;
    const { refused } = told;
    result.model.dispose();
    if (refused > 0) {
      const help = 'Lower --learning-rate, or look for broken documents.';
      terminal.err(
        `warning: ${inCount(refused)} of ${inCount(steps)} steps changed nothing, since a number was not finite\n  help: ${help}\n`,
      );
    }
    return {
      json: {
        out,
        steps,
        ...(loss !== undefined && { loss: Number.isFinite(loss) ? loss : String(loss) }),
        ...(refused > 0 && { refused }),
      },
      text: `${inCount(steps)} step${steps === 1 ? '' : 's'}${loss === undefined ? '' : `, loss ${loss.toFixed(4)}`}, saved in ${out}\n`,
    };
  } catch (error) {
    if (!AbortError.isInstance(error) || told.saved === undefined) throw error;
    throw new AbortError(`${error.message}; ${out} holds the checkpoint of step ${told.saved}`, {
      cause: error,
      help: 'The same command with --resume goes on from there.',
    });
  } finally {
    for (const progress of [loading, preparing.prune, preparing.quantize, bar]) progress.stop();
  }
}

async function recipeOf(flags: FinetuneFlags): Promise<Recipe> {
  const given = Object.fromEntries(
    recipeNames.filter((name) => flags[name] !== undefined && !(name === 'pack' && flags.pack === true)).map((name) => [name, flags[name]]),
  );
  const saved = flags.recipe === undefined ? {} : await readRecipe(flags.recipe);
  const where = flags.recipe ?? 'finetune';
  try {
    const over = 'steps' in given ? { epochs: undefined } : 'epochs' in given ? { steps: undefined } : {};
    const data = 'data' in given ? { batches: undefined } : 'batches' in given ? { data: undefined } : {};
    const all: Readonly<Record<string, unknown>> = { ...saved, ...over, ...data, ...given };
    if (all['model'] === undefined)
      throw new UsageError(`${where}: give --model, a folder, a .gguf, a .safetensors, a URL, or a known name`);
    const parsed = parseRecipe(JSON.parse(JSON.stringify(all)), { where });
    const recipe = flags.requantize ? requantizing(parsed) : parsed;
    if (recipe.out === undefined) throw new UsageError(`${where}: give --out, the folder of the results`);
    if (recipe.data === undefined && recipe.batches === undefined) throw new UsageError(`${where}: give --data or --batches`);
    return recipe;
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError((error as Error).message, { cause: error });
  }
}

function requantizing({ quantize, ...rest }: Recipe): Recipe {
  if (quantize === undefined) throw new UsageError('--requantize: say by --quantize what the model is quantized to');
  const { kind, options } = kindOf(quantize);
  return { ...rest, quantize: { kind, ...options, requantize: true } };
}

async function readRecipe(file: string): Promise<object> {
  const text = await nodeFileSystem()
    .fs.readFile(file, 'utf8')
    .catch((cause: unknown) => {
      throw new NotFoundError(`no recipe '${file}' that can be read`, { file, cause });
    });
  try {
    const json: unknown = JSON.parse(text);
    // What is no object is for parseRecipe to refuse, whole.
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json;
  } catch (cause) {
    throw new UsageError(`${file} is not JSON: ${(cause as Error).message}`, { file });
  }
  throw new UsageError(`${file}: expected an object`, { file });
}

interface Shown {
  readonly terminal: Terminal;
  readonly bar: Progress;
  readonly loading: Progress;
  readonly preparing: Readonly<Record<'prune' | 'quantize', Progress>>;
}

function show(event: RecipeEvent, { terminal, bar, loading, preparing }: Shown): void {
  switch (event.kind) {
    case 'device':
      return terminal.err(`device: ${event.device} (${[event.description, event.reason].filter(Boolean).join('; ')})\n`);
    case 'load':
      return loading.update(event.loaded, event.total, `${inBytes(event.loaded)} ${event.name}`);
    case 'warning':
      return terminal.err(`warning: ${event.message}\n`);
    case 'change':
      loading.stop();
      preparing[event.what].update(event.done, event.total, event.path);
      if (event.done === event.total) preparing[event.what].stop();
      return;
    case 'ready': {
      loading.stop();
      const { trainable, parameters, rows, tokens, targets, dropped } = event;
      const data = rows === undefined ? '' : `; ${inCount(rows)} rows, ${inCount(tokens!)} tokens, ${inCount(targets!)} to learn`;
      terminal.err(`${inCount(trainable)} of ${inCount(parameters)} parameters train${data}\n`);
      if (dropped) terminal.err(`warning: ${inCount(dropped)} documents had nothing to learn and were left out\n`);
      return;
    }
    case 'resume':
      return terminal.err(`resumed after step ${event.step}\n`);
    case 'step':
      return bar.update(event.step, event.steps, wordsOf(event));
    case 'evaluation':
      return terminal.err(
        `step ${event.step}: ${Object.entries(event.metrics)
          .map(([name, value]) => `${name} ${value.toFixed(4)}`)
          .join(', ')}\n`,
      );
    case 'checkpoint':
      return;
  }
}

function wordsOf({ loss, tokensPerSecond, etaSeconds, memory, applied }: StepEvent): string {
  const refused = applied ? '' : ' (refused)';
  return `loss ${loss.toFixed(4)}${refused} · ${inCount(tokensPerSecond)} tokens/s · ${inTime(etaSeconds)} left · ${inBytes(memory.peak)}`;
}
