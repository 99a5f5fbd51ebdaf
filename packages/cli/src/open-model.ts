import { init, load, loadAdapter, recipeKit, type DeviceInfo, type Loaded } from 'niwaki';
import { nearest } from '@niwaki/tensor';
import type { CommonFlags, ModelFlags } from './flags.ts';
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

/** The model of a command, quantized and adapted as its flags say. */
export async function openModel(flags: ModelFlags, terminal: Terminal): Promise<Loaded> {
  const { signal } = terminal;
  checkQuantizer(flags.quantize);
  await openDevice(flags, terminal);
  const loaded = await loadWithProgress(flags.model, terminal);
  const { model } = loaded;
  try {
    if (flags.quantize !== undefined)
      await recipeKit.quantizeModel(model, recipeKit.quantize[flags.quantize]!({}), { at: 'all-linear', seed: 0, signal });
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

export function checkQuantizer(kind: string | undefined): void {
  if (kind === undefined || Object.hasOwn(recipeKit.quantize, kind)) return;
  const known = Object.keys(recipeKit.quantize);
  throw new UsageError(`--quantize: there is no '${kind}'`, {
    kind,
    known,
    help: `Did you mean '${nearest(kind, known, { count: 1 })[0]}'? Known: ${known.join(', ')}.`,
  });
}
