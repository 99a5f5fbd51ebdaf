import {
  checkBlockSize,
  checkFlag,
  checkOptions,
  conflictsOf,
  dequantizeBlocks,
  outOfRange,
  quantizeBlocks,
  refuse,
  type BlockQuantized,
  type Parameter,
  type Party,
  type Tensor,
  type Tensor1D,
} from '@niwaki/tensor';
import { beginEntries } from './begin-entries.ts';
import { selectionNames, takes, type Selection } from './groups.ts';
import { transformParty } from './traits.ts';
import type { CodedState, State, Transform } from './transform.ts';

export interface BlockwiseStateOptions {
  /** Entries that share a scale, a multiple of 4; default 256. */
  readonly blockSize?: number;
  /** Parameters of fewer entries keep f32 state; default 4096. */
  readonly minSize?: number;
  /** Parameters that keep f32 state whatever their size, e.g. { roles: ['embedding'] }. */
  readonly except?: Selection;
  /**
   * False (default): a second moment above 0 is stored above 0. A moment that became 0 while the first one did not would
   * divide the next step by almost nothing. True: as bitsandbytes, which has no such guard.
   */
  readonly strictBnb?: boolean;
}

const eightBits: Party = {
  name: 'state in 8 bits',
  traits: { forbids: ['host-work'], help: { 'host-work': 'Give 8-bit state to the transform inside it.' } },
};

/** How an optimizer stores its state. */
export type StateStorage = '32bit' | '8bit' | BlockwiseStateOptions;

/**
 * Stores another transform's state in 8 bits (Dettmers et al. 2022): each state tensor that has one number an entry of
 * the parameter becomes a byte an entry and an f32 scale a block. An update runs in f32: the state is decoded, the
 * transform makes the update from what it computed, and only then the new state is encoded again.
 * Memory: 1.016 bytes an entry and tensor instead of 4. While one parameter is updated its whole state is in f32 too, and the
 * new codes are beside the old ones; not where the transform has `updateCoded`, as Adam has, whose codes take the place of
 * the old ones on wasm and WebGPU.
 * @throws ConfigError for a transform with host work of its own: give 8-bit state to the one inside it
 */
export function blockwiseState(inner: Transform, options: BlockwiseStateOptions = {}): Transform {
  checkOptions('state in 8 bits', options, ['blockSize', 'minSize', 'except', 'strictBnb']);
  const { blockSize = 256, minSize = 4096, except, strictBnb = false } = options;
  if (except !== undefined) checkOptions('state in 8 bits: except', except, selectionNames);
  checkBlockSize(blockSize);
  if (!(minSize >= 0)) throw outOfRange('state in 8 bits', 'minSize', minSize, 'a number of at least 0');
  checkFlag('state in 8 bits', 'strictBnb', strictBnb);
  refuse(conflictsOf(eightBits, transformParty(inner), 'transform'), { transform: inner.name });
  const { layout = {}, measure, updateCoded, ...rest } = inner;
  const stored = (name: string, value: Tensor | number, { shape }: Parameter): value is Tensor =>
    typeof value !== 'number' &&
    layout[name]?.per === 'entry' &&
    !layout[name].exact &&
    value.shape.join() === shape.join() &&
    value.size >= minSize;

  const encode = (state: State, parameter: Parameter): State => {
    if (except !== undefined && takes(except, parameter)) return state;
    return entriesOf(state, (name, value) => {
      if (!stored(name, value, parameter)) return [[name, value]];
      return namedCodes(name, quantizeBlocks(value, { signed: signedOf(name), blockSize, guard: !strictBnb }));
    });
  };
  const decode = (state: State, { shape }: Parameter): State =>
    entriesOf(state, (name, value) => {
      if (name.endsWith('.scales') && `${nameOf(name)}.codes` in state) return [];
      if (!name.endsWith('.codes')) return [[name, value]];
      const key = nameOf(name);
      const [words, scales] = [value as Tensor1D, state[`${key}.scales`] as Tensor1D];
      return [[key, dequantizeBlocks({ words, scales }, { shape, signed: signedOf(key), blockSize })]];
    });
  const signedOf = (name: string): boolean => layout[name]?.signed ?? true;
  /** The coded tensors of a state that holds no others. */
  const codedOf = (state: State): CodedState<State> | undefined => {
    const names = Object.keys(state);
    if (names.length === 0 || names.some((name) => !(`${nameOf(name)}.codes` in state && `${nameOf(name)}.scales` in state)))
      return undefined;
    const coded = names.filter((name) => name.endsWith('.codes')).map(nameOf);
    return Object.fromEntries(
      coded.map((name) => [name, { words: state[`${name}.codes`] as Tensor1D, scales: state[`${name}.scales`] as Tensor1D }]),
    );
  };

  return {
    ...rest,
    options: { ...rest.options, state: { blockSize, minSize, ...(except && { except }), strictBnb } },
    init: (parameter, peers) => encode(inner.init(parameter, peers), parameter),
    update: (gradient, state, context) => {
      const coded = updateCoded && codedOf(state);
      if (coded !== undefined) {
        const { state: next, ...updated } = updateCoded!(gradient, coded, context, { blockSize, guard: !strictBnb });
        return { ...updated, state: Object.fromEntries(Object.entries(next).flatMap(([name, codes]) => namedCodes(name, codes))) };
      }
      const made = inner.update(gradient, decode(state, context.parameter), context);
      // Codes of old moments need not be the old codes: who chooses has to choose between codes.
      return { ...made, state: encode(made.state, context.parameter), gated: false };
    },
    // A block that gets a larger entry gets a coarser scale: its other entries keep their moments to a byte, not to the bit.
    begin: (state, entries, parameter) => encode(beginEntries(inner, decode(state, parameter), entries, parameter), parameter),
    ...(measure && { measure: (gradient, state) => measure(gradient, state) }),
  };
}

/** `blockwiseState` where it was asked for, with its defaults for '8bit'. */
export function stateStoredAs(storage: StateStorage, inner: Transform): Transform {
  if (storage === '32bit') return inner;
  if (storage === '8bit') return blockwiseState(inner);
  if (typeof storage === 'object') return blockwiseState(inner, storage);
  throw outOfRange('optimizer', 'state', storage, "'32bit', '8bit' or options");
}

const namedCodes = (name: string, { words, scales }: BlockQuantized): [string, Tensor][] => [
  [`${name}.codes`, words],
  [`${name}.scales`, scales],
];

const nameOf = (name: string): string => name.slice(0, name.lastIndexOf('.'));

function entriesOf(state: State, each: (name: string, value: Tensor | number) => [string, Tensor | number][]): State {
  return Object.fromEntries(Object.entries(state).flatMap(([name, value]) => each(name, value)));
}
