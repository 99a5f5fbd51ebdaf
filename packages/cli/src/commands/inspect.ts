import { weightBytes, type Model, type Weight } from 'niwaki';
import type { Command } from 'commander';
import { withModel, type ModelFlags } from '../flags.ts';
import { inBytes, inCount } from '../number.ts';
import { openModel } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

export const inspectFlags = (command: Command): Command =>
  withModel(command).description('what a model is made of, and how each matrix is stored');

interface Module {
  readonly path: string;
  /** Absent for what has no weight, an operand of attention. */
  readonly format?: string;
  /** Of the numbers that it is given, where they are rounded. */
  readonly inputBits?: number;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** Everything stored, each once: matrices by their site, other parameters by their own path. */
export async function runInspect(flags: ModelFlags, terminal: Terminal): Promise<Result> {
  const { model } = await openModel(flags, terminal);
  try {
    const { family } = model.info;
    const modules = modulesOf(model);
    const parameters = modules.reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
    const bytes = modules.reduce((sum, module) => sum + module.bytes, 0);
    return {
      json: { family, parameters, bytes, modules: modules.map((module) => ({ ...module })) },
      text: tableOf({ family, parameters, bytes, modules }),
    };
  } finally {
    model.dispose();
  }
}

function modulesOf(model: Model): Module[] {
  const modules: Module[] = [];
  const seen = new Set<unknown>();
  for (const stage of model.stages()) {
    for (const { path, weight, input } of stage.sites) {
      const rounded = input && { inputBits: input.bits };
      if (weight === undefined && rounded) modules.push({ path, ...rounded, shape: [], bytes: 0 });
      if (weight === undefined || seen.has(weight)) continue;
      seen.add(weight);
      for (const part of Object.values(weight.parts)) seen.add(part);
      modules.push({ path, format: formatOf(weight), ...rounded, shape: [...weight.shape], bytes: weightBytes(weight) });
    }
    for (const parameter of stage.parameters()) {
      if (seen.has(parameter)) continue;
      seen.add(parameter);
      modules.push({ path: parameter.path, format: 'f32', shape: [...parameter.shape], bytes: parameter.bytes() });
    }
  }
  return modules;
}

/** The storage in one word: what the kind holds where it has several, 'f32' for plain floats. */
function formatOf({ kind, options }: Weight): string {
  const { book, format, dtype } = (options ?? {}) as { book?: unknown; format?: unknown; dtype?: unknown };
  if (kind === 'dense') return typeof dtype === 'string' ? dtype.toLowerCase() : 'f32';
  const inner = format ?? book;
  return typeof inner === 'string' ? inner.toLowerCase() : kind;
}

function tableOf({
  family,
  parameters,
  bytes,
  modules,
}: {
  family: string;
  parameters: number;
  bytes: number;
  modules: readonly Module[];
}): string {
  const rows = modules.map(({ path, format, inputBits, shape, bytes: size }) => {
    const input = inputBits === undefined ? undefined : `input in ${inputBits} bits`;
    return [path, [format, input].filter((word) => word !== undefined).join(', '), shape.join('×'), inBytes(size)];
  });
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]!.length)));
  const lines = rows.map((row) => row.map((cell, column) => (column === 3 ? cell : cell.padEnd(widths[column]!))).join('  '));
  return `${family}, ${inCount(parameters)} parameters, ${inBytes(bytes)}\n\n${lines.join('\n')}\n`;
}
