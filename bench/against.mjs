/**
 * How many times faster `ours` is than `theirs`: both run turn by turn, each judged by its best turn, so that a busy neighbor slows both or neither.
 * One thread (`threads: 1`) is judged by the time that it computed, which does not count while it waits for its core.
 */
export async function against(ours, theirs, { turns = 30, threads } = {}) {
  const now = threads === 1 ? computed : () => performance.now();
  const best = { ours: Infinity, theirs: Infinity };
  for (let turn = -2; turn < turns; turn++) {
    for (const [side, run] of Object.entries({ ours, theirs })) {
      await run.use();
      const start = now();
      await run.once();
      const elapsed = now() - start;
      // The first turns compile.
      if (turn >= 0) best[side] = Math.min(best[side], elapsed);
    }
  }
  return { ratio: best.theirs / best.ours, milliseconds: Number(best.ours.toFixed(3)), against: Number(best.theirs.toFixed(3)) };
}

/** Milliseconds of this process on its cores. */
function computed() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
