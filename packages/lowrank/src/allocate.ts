import { ConfigError } from '@niwaki/tensor';

/** One way to store a part, with what it costs in error and in size. */
export interface Choice {
  readonly cost: number;
  readonly size: number;
}

export interface Allocation {
  /** Index of the choice of each part. */
  readonly chosen: readonly number[];
  readonly cost: number;
  readonly size: number;
  /** Whether no other allocation is better; false where the search was cut off. */
  readonly optimal: boolean;
}

interface Option extends Choice {
  readonly index: number;
}

/** From one point of a part's lower convex hull to the next. */
interface Step {
  readonly part: number;
  readonly size: number;
  readonly gain: number;
}

const maxNodes = 50_000;

/**
 * One choice for each part, of the least total cost within a total size: the multiple-choice knapsack. Branch and bound
 * over what no other choice beats in both, with the linear relaxation as the bound (Sinha & Zoltners 1979).
 * @throws ConfigError naming the least total size where the budget is below it
 */
export function allocate(parts: readonly (readonly Choice[])[], budget: number): Allocation {
  const options = parts.map(undominated);
  const least = options.reduce((total, list) => total + list[0]!.size, 0);
  const room = budget * (1 + 1e-12);
  if (least > room) throw new ConfigError(`the budget of ${budget} is below the least that the choices take, ${least}`, { budget, least });
  const steps = options.flatMap(hullSteps).sort((one, other) => other.gain * one.size - one.gain * other.size);
  // Sums from each part on, at the smallest choices.
  const [restCost, restSize] = (['cost', 'size'] as const).map((key) => suffixSums(options.map((list) => list[0]![key])));

  let best: { cost: number; chosen: number[] } = { cost: Infinity, chosen: [] };
  let nodes = 0;
  const chosen: number[] = [];
  const bound = (part: number, left: number): number => {
    let cost = restCost![part]!;
    let room = left - restSize![part]!;
    for (const step of steps) {
      if (step.part < part) continue;
      if (step.size > room) return cost - (step.gain * room) / step.size;
      cost -= step.gain;
      room -= step.size;
    }
    return cost;
  };
  const visit = (part: number, cost: number, left: number): void => {
    if (part === options.length) {
      if (cost < best.cost) best = { cost, chosen: [...chosen] };
      return;
    }
    if (nodes++ > maxNodes) return;
    const fitting = options[part]!.filter(({ size }) => left - size >= restSize![part + 1]!);
    const bounded = fitting
      .map((option) => ({ option, bound: cost + option.cost + bound(part + 1, left - option.size) }))
      .sort((one, other) => one.bound - other.bound);
    for (const { option, bound: lower } of bounded) {
      if (lower >= best.cost) return;
      chosen.push(option.index);
      visit(part + 1, cost + option.cost, left - option.size);
      chosen.pop();
    }
  };
  visit(0, 0, room);
  const total = (key: keyof Choice): number => best.chosen.reduce((sum, index, part) => sum + parts[part]![index]![key], 0);
  return { chosen: best.chosen, cost: total('cost'), size: total('size'), optimal: nodes <= maxNodes };
}

/** By size, each cheaper than all before it. */
function undominated(choices: readonly Choice[]): Option[] {
  const sorted = choices.map((choice, index) => ({ ...choice, index })).sort((a, b) => a.size - b.size || a.cost - b.cost);
  const kept: Option[] = [];
  for (const option of sorted) if (kept.length === 0 || option.cost < kept.at(-1)!.cost) kept.push(option);
  return kept;
}

function hullSteps(options: readonly Option[], part: number): Step[] {
  const hull: Option[] = [];
  const slope = (from: Option, to: Option): number => (from.cost - to.cost) / (to.size - from.size);
  for (const option of options) {
    while (hull.length >= 2 && slope(hull.at(-2)!, hull.at(-1)!) <= slope(hull.at(-1)!, option)) hull.pop();
    hull.push(option);
  }
  return hull.slice(1).map((to, i) => ({ part, size: to.size - hull[i]!.size, gain: hull[i]!.cost - to.cost }));
}

function suffixSums(values: readonly number[]): number[] {
  const sums = [...values, 0];
  for (let i = values.length - 1; i >= 0; i--) sums[i] = values[i]! + sums[i + 1]!;
  return sums;
}
