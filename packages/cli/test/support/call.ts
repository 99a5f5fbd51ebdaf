import { runCli } from '../../src/index.ts';

export interface Answer {
  readonly code: number;
  readonly out: string;
  readonly err: string;
  /** stdout as the one JSON object it must be. */
  json(): Record<string, unknown>;
}

/** Runs a command line in this process. `--device cpu` keeps the device that the test runs on. */
export async function call(
  args: readonly string[],
  { signal = new AbortController().signal }: { signal?: AbortSignal } = {},
): Promise<Answer> {
  let out = '';
  let err = '';
  const code = await runCli(args, { out: (text) => (out += text), err: (text) => (err += text), signal, bars: undefined });
  return { code, out, err, json: () => JSON.parse(out) as Record<string, unknown> };
}
