import { checkCount, ConfigError, distinctNumbers, mul, tidy, type Noise, type Parameter, type Tensor } from '@niwaki/tensor';
import { countedFrom, prefixed, substate, type State, type Transform } from '@niwaki/optim';
import { refuseInside, restUpdate, valueOf, type Rest } from './subspace.ts';

/** Which matrices come next: drawn anew each time, or a run that moves through them from one end, or from both. */
export type TurnOrder = 'random' | 'descending' | 'ascending' | 'mirror';

export interface TurnsOptions {
  /** The parameters that take turns; the transform inside gets the others whole. */
  readonly of: (parameter: Parameter) => boolean;
  /** How many of `count` have state at a time. */
  readonly active: (count: number) => number;
  readonly order: TurnOrder;
  /** Updates of a turn. */
  readonly every: number;
  /** Multiplies the update of those that take turns. */
  readonly scale: number;
  /** What the others do meanwhile. */
  readonly rest?: Rest;
}

/**
 * Runs a transform on whole parameters by turns: some have state for `every` applied updates, then it is freed and others
 * begin theirs, bias correction too. State: that of the transform for those whose turn it is, and four numbers each.
 */
export function inTurns(name: string, inner: Transform, { of, active, order, every, scale, rest }: TurnsOptions): Transform {
  checkCount(name, 'every', every);
  refuseInside(name, inner);
  return {
    name,
    varies: true,
    init: (parameter, peers = [parameter]) => {
      if (!of(parameter)) return inner.init(parameter, peers);
      const among = peers.filter(of);
      chosen(0, among.length, { active: active(among.length), order, name });
      return { age: 0, active: 0, place: among.indexOf(parameter), count: among.length };
    },
    due: ({ age }) => typeof age === 'number' && age % every === 0,
    prepare: async (_, state, { parameter, draw }) => {
      const { age, place, count } = state as Counters;
      const settings = { active: active(count), order, name, address: draw.at(`${name}#turns`) };
      const turn = chosen(age / every, count, settings).includes(place);
      const began = turn ? tidy(() => prefixed(inner.init(parameter), 'inner') as Record<string, Tensor | number>) : {};
      return { ...began, age, active: turn ? 1 : 0, place, count };
    },
    update: (gradient, state, context) => {
      if (typeof state['age'] !== 'number') return inner.update(gradient, state, context);
      const { age, active: turn, place, count } = state as Counters;
      const counters = { age: age + 1, active: turn, place, count };
      if (turn === 0) return { update: { kind: 'dense', value: restUpdate(valueOf(gradient), rest, scale) }, state: counters };
      const made = inner.update(gradient, substate(state, 'inner'), countedFrom(context, (age % every) + 1));
      return {
        update: { kind: 'dense', value: mul(valueOf(made.update), scale) },
        state: { ...prefixed(made.state, 'inner'), ...counters },
        ...(made.how && { how: made.how }),
        gated: made.gated ?? false,
      };
    },
  };
}

/** Kept with the state, so that a saved one goes on without being told of the others again. */
interface Counters extends State {
  /** Updates so far. */
  readonly age: number;
  /** 1 in its turn, else 0. */
  readonly active: number;
  /** Its place among those that take turns, and how many these are. */
  readonly place: number;
  readonly count: number;
}

interface Choice {
  readonly name: string;
  readonly active: number;
  readonly order: TurnOrder;
  readonly address?: Noise;
}

/** Whose turn the n-th one is, by place. */
function chosen(turn: number, count: number, { name, active, order, address }: Choice): readonly number[] {
  if (order === 'mirror' && active % 2 === 1) {
    throw new ConfigError(`${name}: the order 'mirror' takes as many matrices from one end as from the other, got ${active} of ${count}`, {
      active,
      count,
      help: 'Change the density a little, or choose another order.',
    });
  }
  if (order === 'random') return address === undefined ? [] : [...distinctNumbers(count, active, address)];
  return Array.from({ length: active }, (_, i) => {
    const step = (turn * active + i) % count;
    if (order === 'ascending') return step;
    if (order === 'descending') return count - 1 - step;
    return step % 2 === 0 ? step / 2 : count - (step + 1) / 2;
  });
}
