/** A whole-process job of bench/jobs on the card: `node job.mjs lora-step --batch 4 …` prints its JSON. */
import { parseArgs, type ParseArgsConfig } from 'node:util';

interface Job {
  readonly options: NonNullable<ParseArgsConfig['options']>;
  run(values: Readonly<Record<string, unknown>>): Promise<object>;
}

const jobs = import.meta.glob<Job>('../jobs/{lora-step,decode}.mjs');
const [name, ...args] = process.argv.slice(2);
const { options, run } = await jobs[`../jobs/${name}.mjs`]!();
const { values } = parseArgs({ args, options: { ...options, device: { type: 'string', default: 'webgpu' } } });
console.log(JSON.stringify(await run(values)));
process.exit(0);
