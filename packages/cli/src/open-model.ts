import { readBase } from '@niwaki/train';
import { init, load, loadAdapter, loadResult, recipeKit, type DeviceInfo, type Loaded, type LoadedResult } from 'niwaki';
import { namesInstead } from '@niwaki/tensor';
import { quantizersWithoutText, type CommonFlags, type ModelFlags } from './flags.ts';
import { UsageError } from './failure.ts';
import { inBytes } from './number.ts';
import { createProgress } from './progress.ts';
import type { Terminal } from './terminal.ts';

/** Takes the device and says which one, and why. */
export async function openDevice({ device, threads }: CommonFlags, terminal: Terminal): Promise<DeviceInfo> {
  const taken = await init({ ...(device && { device }), ...(threads && { threads }) });
  terminal.err(`device: ${taken.device} (${taken.description}; ${taken.reason})\n`);
  return taken;
}

/** The model of a command, quantized and adapted as its flags say, or as the folder of its adapter does. */
export async function openModel(flags: ModelFlags, terminal: Terminal): Promise<Loaded> {
  const { signal } = terminal;
  checkQuantizer(flags.quantize);
  // Who says how the model is quantized says all of it.
  if (flags.quantize === undefined && (await isOfRun(flags.adapter))) return openResult({ ...flags, adapter: flags.adapter! }, terminal);
  if (flags.model === undefined) throw noModel(flags.adapter);
  await openDevice(flags, terminal);
  const loaded = await loadWithProgress(flags.model, terminal);
  const { model } = loaded;
  try {
    if (flags.quantize !== undefined)
      await recipeKit.quantizeModel(model, recipeKit.quantize[flags.quantize]!({ requantize: flags.requantize ?? false }), {
        at: 'all-linear',
        seed: 0,
        signal,
      });
    if (flags.adapter !== undefined) {
      const onWarning = ({ message }: { message: string }): void => terminal.err(`warning: ${message}\n`);
      const set = await loadAdapter(model, flags.adapter, { signal, onWarning });
      model.active = [set.name];
    }
    return loaded;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Whether an adapter's folder says what the adapter stands on. */
const isOfRun = async (adapter: string | undefined): Promise<boolean> =>
  adapter !== undefined && (await readBase(recipeKit.folder(adapter))) !== undefined;

const noModel = (adapter: string | undefined): UsageError =>
  new UsageError(
    adapter === undefined ? 'give --model' : `give --model: '${adapter}' has no base.json, which would say what its adapter stands on`,
  );

/** What finetune left in a folder, as it was at the end of training. */
async function openResult(
  { adapter, model, ...flags }: CommonFlags & { readonly adapter: string; readonly model?: string },
  terminal: Terminal,
): Promise<LoadedResult> {
  await openDevice(flags, terminal);
  const loading = createProgress(terminal, 'loading');
  const changing = { prune: createProgress(terminal, 'pruning'), quantize: createProgress(terminal, 'quantizing') };
  try {
    return await loadResult(adapter, {
      ...(model !== undefined && { model }),
      signal: terminal.signal,
      onEvent: (event) => {
        if (event.kind === 'warning') return terminal.err(`warning: ${event.message}\n`);
        if (event.kind === 'load') return loading.update(event.loaded, event.total, `${inBytes(event.loaded)} ${event.name}`);
        loading.stop();
        changing[event.what].update(event.done, event.total, event.path);
        if (event.done === event.total) changing[event.what].stop();
      },
    });
  } finally {
    for (const progress of [loading, changing.prune, changing.quantize]) progress.stop();
  }
}

export async function loadWithProgress(source: string, terminal: Terminal): Promise<Loaded> {
  const progress = createProgress(terminal, 'loading');
  try {
    const loaded = await load(source, {
      signal: terminal.signal,
      onProgress: ({ loaded: done, total, name }) => progress.update(done, total, `${inBytes(done)} ${name}`),
    });
    for (const warning of loaded.warnings) terminal.err(`warning: ${warning}\n`);
    return loaded;
  } finally {
    progress.stop();
  }
}

/** Whether a quantizer can be put on a model as it is loaded: one that looks at text makes a model of its own first. */
function checkQuantizer(kind: string | undefined): void {
  if (kind === undefined || quantizersWithoutText.includes(kind)) return;
  if (Object.hasOwn(recipeKit.quantize, kind)) {
    throw new UsageError(`--quantize: ${kind} needs text to calibrate with, which this command has not`, {
      kind,
      help: `Run niwaki quantize --quantize ${kind} --calibrate FILE, and give its folder as --model.`,
    });
  }
  checkKind('--quantize', kind, quantizersWithoutText);
}

/** @throws UsageError that names the nearest kind */
export function checkKind(flag: string, kind: string, known: readonly string[]): void {
  if (known.includes(kind)) return;
  throw new UsageError(`${flag}: there is no '${kind}'`, { kind, ...namesInstead(kind, known) });
}
