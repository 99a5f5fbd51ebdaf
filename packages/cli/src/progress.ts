import { Presets, SingleBar } from 'cli-progress';
import type { Terminal } from './terminal.ts';

/** One line that moves where people watch, one line now and then where a file or a pipe does. */
export interface Progress {
  update(done: number, total: number, text: string): void;
  stop(): void;
}

const quietMs = 5000;

export function createProgress(terminal: Terminal, label: string): Progress {
  return terminal.bars === undefined ? linesOf(terminal, label) : barOn(terminal.bars, label);
}

function barOn(stream: NodeJS.WritableStream, label: string): Progress {
  const bar = new SingleBar(
    { format: `${label} [{bar}] {value}/{total} {text}`, stream, hideCursor: true, clearOnComplete: false, forceRedraw: true },
    Presets.shades_classic,
  );
  let started = false;
  return {
    update: (done, total, text) => {
      if (!started) bar.start(total, done, { text });
      else {
        bar.setTotal(total);
        bar.update(done, { text });
      }
      started = true;
    },
    stop: () => {
      if (started) bar.stop();
    },
  };
}

function linesOf(terminal: Terminal, label: string): Progress {
  let shown = -Infinity;
  return {
    update: (done, total, text) => {
      const now = performance.now();
      if (now - shown < quietMs && done !== total) return;
      shown = now;
      terminal.err(`${label} ${done}/${total} ${text}\n`);
    },
    stop: () => {},
  };
}
