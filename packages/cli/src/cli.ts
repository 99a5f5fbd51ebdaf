import { Command, CommanderError } from 'commander';
import { benchFlags, runBench } from './commands/bench.ts';
import { evalFlags, runEval } from './commands/eval.ts';
import { finetuneFlags, runFinetune } from './commands/finetune.ts';
import { generateFlags, runGenerate } from './commands/generate.ts';
import { inspectFlags, runInspect } from './commands/inspect.ts';
import { mergeFlags, runMerge } from './commands/merge.ts';
import { pruneFlags, runPrune } from './commands/prune.ts';
import { quantizeFlags, runQuantize } from './commands/quantize.ts';
import { describeFailure, UsageError } from './failure.ts';
import type { Result } from './result.ts';
import type { Terminal } from './terminal.ts';

interface Entry {
  readonly flags: (command: Command) => Command;
  readonly run: (flags: never, terminal: Terminal) => Promise<Result>;
}

const commands: Readonly<Record<string, Entry>> = {
  finetune: { flags: finetuneFlags, run: runFinetune },
  generate: { flags: generateFlags, run: runGenerate },
  eval: { flags: evalFlags, run: runEval },
  inspect: { flags: inspectFlags, run: runInspect },
  quantize: { flags: quantizeFlags, run: runQuantize },
  prune: { flags: pruneFlags, run: runPrune },
  merge: { flags: mergeFlags, run: runMerge },
  bench: { flags: benchFlags, run: runBench },
};

/**
 * Runs one command line.
 * @returns the exit code: 0, 1 for failures, 2 for wrong usage
 */
export async function runCli(args: readonly string[], terminal: Terminal): Promise<number> {
  const json = args.includes('--json');
  const program = new Command('niwaki').description('Quantize, prune, adapt, train and merge real models.');
  let ran: Promise<Result> | undefined;
  const settle = (command: Command): Command =>
    command
      .exitOverride()
      .showHelpAfterError('(--help lists the flags)')
      .allowExcessArguments(false)
      .configureOutput({
        // Help that was asked for is a result; usage errors are not.
        writeOut: (text) => (json ? terminal.err(text) : terminal.out(text)),
        writeErr: (text) => terminal.err(text),
      });
  settle(program);
  for (const [name, { flags, run }] of Object.entries(commands)) {
    settle(flags(program.command(name))).action(async (given: unknown) => {
      ran = run(given as never, terminal);
      await ran;
    });
  }
  try {
    await program.parseAsync([...args], { from: 'user' });
    const { json: object, text } = (await ran) ?? { json: {}, text: '' };
    terminal.out(json ? `${JSON.stringify(object)}\n` : text);
    return 0;
  } catch (error) {
    // Commander has told people already; help that was asked for is no error.
    const told = error instanceof CommanderError;
    if (told && error.exitCode === 0) return 0;
    const { text, json: parts } = describeFailure(told ? new UsageError(error.message) : error);
    if (!told) terminal.err(`niwaki: ${text}\n`);
    if (json) terminal.out(`${JSON.stringify({ error: parts })}\n`);
    return told || error instanceof UsageError ? 2 : 1;
  }
}
