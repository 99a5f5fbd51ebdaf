import { spawnSync } from 'node:child_process';

/** The path of a file of this folder. */
export const here = (path) => new URL(path, import.meta.url).pathname;

/** A process's JSON, or why there is none. */
export function jsonOf(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 26 });
  if (status === 0) return JSON.parse(stdout);
  return { skipped: `${command} ${args[0]}: ${error?.message ?? stderr.trim().split('\n').at(-1)}` };
}
