/** Where a command writes and what can stop it: the process's own streams, or a test's. */
export interface Terminal {
  /** Results. With --json: one JSON object and nothing else. */
  out(text: string): void;
  /** What is for people: device, progress, warnings, errors. */
  err(text: string): void;
  /** Fires at the first Ctrl-C. */
  readonly signal: AbortSignal;
  /** The stream of a progress bar, where people watch. */
  readonly bars: NodeJS.WritableStream | undefined;
}

/** The process's terminal. A second Ctrl-C ends the process at once. */
export function processTerminal(): Terminal {
  const controller = new AbortController();
  process.on('SIGINT', () => {
    if (controller.signal.aborted) process.exit(1);
    controller.abort(new Error('Ctrl-C'));
    process.stderr.write('\nstopping after this piece; press Ctrl-C again to quit at once\n');
  });
  return {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    signal: controller.signal,
    bars: process.stderr.isTTY ? process.stderr : undefined,
  };
}
