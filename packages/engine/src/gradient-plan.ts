import type { Parameter } from '@niwaki/tensor';
import type { Route } from './route.ts';

/** Why each parameter's gradient is streamed or held, and how many bytes are held at most. */
export interface GradientPlan {
  readonly entries: readonly GradientPlanEntry[];
  /** Gradient bytes alive at once, at most, in a step of one micro-batch. */
  readonly peakBytes: number;
  /** The same with accumulation: all sums, and what is being added to them. */
  readonly accumulatingBytes: number;
  /** A table, one parameter a line. */
  toString(): string;
}

export interface GradientPlanEntry {
  readonly path: string;
  /** Bytes of its gradient, f32. */
  readonly bytes: number;
  /** False: applied and freed before the next gradient is made. */
  readonly held: boolean;
  readonly reason: string;
}

export function planGradients(route: Route, { commit, measured }: { commit: 'step' | 'eager'; measured: boolean }): GradientPlan {
  const { stages, head, trained, uses } = route;
  const entries = [...uses].map(([parameter, [first, ...others]]): GradientPlanEntry => {
    const bytes = bytesOf(parameter);
    const { path } = parameter;
    if (others.length > 0)
      return {
        path,
        bytes,
        held: true,
        reason: `read by ${[first!, ...others].map((s) => stages[s]!.path).join(' and ')}: final after the first`,
      };
    if (commit === 'eager') return { path, bytes, held: false, reason: `applied during the backward of ${stages[first!]!.path}` };
    return { path, bytes, held: true, reason: measured ? 'the optimizer measures all gradients first' : 'the step applies all at once' };
  });
  // A stage gives one gradient after another; the head, which runs in chunks, all of its at the end.
  const atOnce = trained.map((own, s) => own.map(bytesOf).reduce((all, bytes) => (s === head ? all + bytes : Math.max(all, bytes)), 0));
  const total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const peakBytes = commit === 'step' ? total : eagerPeak(route, atOnce);
  const accumulatingBytes = total + Math.max(...atOnce);
  return { entries, peakBytes, accumulatingBytes, toString: () => tableOf(entries, peakBytes) };
}

const bytesOf = ({ shape }: Parameter): number => shape.reduce((product, side) => product * side, 4);

/** From the head down: what the stage gives at once, beside what waits for a lower stage, its own too. */
function eagerPeak({ uses, head }: Route, atOnce: readonly number[]): number {
  const peaks = atOnce.map((bytes, s) => {
    const waiting = s === head ? [] : [...uses].filter(([, at]) => at[0]! < s && at.at(-1)! >= s);
    return bytes + waiting.reduce((sum, [parameter]) => sum + bytesOf(parameter), 0);
  });
  return Math.max(...peaks);
}

function tableOf(entries: readonly GradientPlanEntry[], peakBytes: number): string {
  const width = Math.max(...entries.map(({ path }) => path.length));
  const lines = entries.map(
    ({ path, bytes, held, reason }) => `${path.padEnd(width)}  ${String(bytes).padStart(11)}  ${held ? 'held    ' : 'streamed'}  ${reason}`,
  );
  return [...lines, `${'at most'.padEnd(width)}  ${String(peakBytes).padStart(11)}  bytes at once`].join('\n');
}
