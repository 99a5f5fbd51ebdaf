import { isCalibrated } from '@niwaki/engine';
import { recipeKit } from 'niwaki';
import { InvalidArgumentError, Option, type Command } from 'commander';

const whole =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`expected a whole number of at least ${least}`);
  };
export const count: (text: string) => number = whole(1);
export const natural: (text: string) => number = whole(0);

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('expected a number');
}

/** 'a,b' or a repeated flag is a list. */
export function patterns(text: string, before: string | string[] | undefined): string | string[] {
  const given = text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');
  if (given.length === 0) throw new InvalidArgumentError('expected a pattern');
  const all = [...(before === undefined ? [] : [before].flat()), ...given];
  return all.length === 1 ? all[0]! : all;
}

/** Flags that every command has. */
export interface CommonFlags {
  readonly json?: boolean;
  readonly device?: 'auto' | 'cpu' | 'wasm' | 'webgpu';
  readonly threads?: number;
}

export const withCommon = (command: Command): Command =>
  command
    .addOption(new Option('--device <name>', 'where to compute').choices(['auto', 'cpu', 'wasm', 'webgpu']))
    .option('--threads <n>', 'threads of the wasm device', count)
    .option('--json', 'one JSON object on stdout and nothing else');

/** Those that need nothing but the model. */
export const quantizersWithoutText: readonly string[] = Object.entries(recipeKit.quantize)
  .filter(([, make]) => !isCalibrated(make({})))
  .map(([kind]) => kind);

/** Codes that are rounded again keep both errors, so it has to be asked for. */
export const requantizeFlag = ['--requantize', 'quantize what is quantized already, as a .gguf is: both errors stay'] as const;

/** Flags of commands that read a model. */
export interface ModelFlags extends CommonFlags {
  /** Absent: what the adapter's folder says. */
  readonly model?: string;
  readonly adapter?: string;
  readonly quantize?: string;
  readonly requantize?: boolean;
}

export const withModel = (command: Command): Command =>
  withCommon(
    command
      .option('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny); a folder of finetune names its own')
      .option('--adapter <dir>', 'a PEFT adapter to put on; of a folder of finetune, on the model pruned and quantized as it was')
      .option('--quantize <kind>', `quantize after loading: ${quantizersWithoutText.join(', ')}`)
      .option(...requantizeFlag),
  );
