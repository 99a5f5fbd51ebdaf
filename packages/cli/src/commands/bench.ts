import { measureSpeed, type SpeedRow } from 'niwaki';
import type { Command } from 'commander';
import { count, withCommon, type CommonFlags } from '../flags.ts';
import { inBytes } from '../number.ts';
import { openDevice } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface BenchFlags extends CommonFlags {
  readonly side: number;
  readonly rows: number;
  readonly tokens: number;
  readonly milliseconds: number;
  readonly layers: number;
}

export const benchFlags = (command: Command): Command =>
  withCommon(command)
    .description('how fast this machine is: products of each format, and a step of LoRA')
    .option('--side <n>', 'rows and columns of the matrices, a multiple of 256', count, 2048)
    .option('--rows <n>', 'rows of x in products of training', count, 64)
    .option('--tokens <n>', 'tokens of a training step', count, 128)
    .option('--layers <n>', 'of the model that is trained', count, 4)
    .option('--milliseconds <n>', 'how long each product is repeated', count, 150);

/** Measures; without --json each number appears as it is known. */
export async function runBench({ json, device, threads, layers, ...sizes }: BenchFlags, terminal: Terminal): Promise<Result> {
  const taken = await openDevice({ ...(device && { device }), ...(threads && { threads }) }, terminal);
  const rows: SpeedRow[] = [];
  for await (const row of measureSpeed({ ...sizes, config: { num_hidden_layers: layers }, signal: terminal.signal })) {
    rows.push(row);
    if (!json) terminal.out(line(row));
  }
  const peakRssBytes = process.resourceUsage().maxRSS * 1024;
  return {
    json: {
      device: taken.device,
      description: taken.description,
      threads: taken.threads,
      rows: rows.map((row) => ({ ...row })),
      peakRssBytes,
    },
    text: `peak memory of the process ${inBytes(peakRssBytes).padStart(22)}\n`,
  };
}

function line({ job, format, activations, value, unit }: SpeedRow): string {
  const how = activations === undefined || activations === 'exact' ? '' : `, ${activations} activations`;
  return `${job.padEnd(12)} ${`${format}${how}`.padEnd(26)} ${value.toFixed(1).padStart(8)} ${unit}\n`;
}
