import { spawnSync } from 'node:child_process';

/** The path of a file of this folder. */
export const here = (path) => new URL(path, import.meta.url).pathname;

/** A process's JSON, or why there is none. */
export function jsonOf(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 26 });
  if (status === 0) return JSON.parse(stdout);
  return { skipped: `${command} ${args[0]}: ${error?.message ?? stderr.trim().split('\n').at(-1)}` };
}

/**
 * A peer's process and ours, in turn: the round in the middle by its ratio. Rounds of half a minute see machines of another speed,
 * the two sides of one round hardly.
 * @param run the peer's JSON and ours
 * @param ratioOf what of a round is compared
 * @returns `skipped` where the peer is not on this machine
 */
export function middleRound(run, ratioOf, { rounds = 3 } = {}) {
  const all = [];
  for (let round = 0; round < rounds; round++) {
    const theirs = run.theirs();
    if (theirs.skipped !== undefined) return theirs;
    const ours = run.ours();
    if (ours.skipped !== undefined) throw new Error(ours.skipped);
    all.push({ ours, theirs, ratio: ratioOf(ours, theirs) });
  }
  return all.sort((a, b) => a.ratio - b.ratio)[rounds >> 1];
}
