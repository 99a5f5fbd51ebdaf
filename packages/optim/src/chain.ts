import { ConfigError, descriptionOf, type Commit } from '@niwaki/tensor';
import { beginEntries } from './begin-entries.ts';
import { prefixed, substate } from './part-of.ts';
import type { State, Transform } from './transform.ts';
import { writable } from './writable.ts';

/** A composition; its parts are kept, so that a chain in a chain is one flat list. */
export interface Chain extends Transform {
  readonly parts: readonly Transform[];
}

/**
 * One transform after another: each takes the update of the one before it. State entries are named `part.entry`, so that
 * adding a part that has no state leaves a saved state valid. At most one part may measure (global clipping), and it
 * comes first: what is measured is the gradient as it arrives. `prepare` of every part is given that gradient too.
 */
export function chain(...transforms: readonly Transform[]): Chain {
  const parts = transforms.flatMap((transform) => ('parts' in transform ? (transform as Chain).parts : [transform]));
  const keys = stateKeys(parts);
  const measuring = checkMeasures(parts);
  const first = parts[0];
  const learningRate = transforms
    .map((part) => part.learningRate)
    .filter((rate) => rate !== undefined)
    .at(-1);
  const due = (part: Transform, i: number, state: State, context: Parameters<NonNullable<Transform['due']>>[1]): boolean =>
    part.prepare !== undefined && (part.due?.(substate(state, keys[i]!), context) ?? false);
  return {
    name: transforms.map(({ name }) => name).join(' → ') || 'identity',
    parts,
    options: { parts: parts.map(descriptionOf) },
    ...(learningRate === undefined ? {} : { learningRate }),
    ...(first?.accepts === undefined ? {} : { accepts: first.accepts }),
    layout: Object.assign({}, ...parts.map(({ layout = {} }, i) => prefixed(layout, keys[i]!))) as NonNullable<Transform['layout']>,
    init: (parameter, peers) => Object.assign({}, ...parts.map((part, i) => prefixed(part.init(parameter, peers), keys[i]!))) as State,
    ...(parts.some(({ varies }) => varies) ? { varies: true } : {}),
    update: (gradient, state, context) => {
      let update = gradient;
      let how: Commit | undefined;
      const next: State = {};
      let gated = true;
      const { owned = false } = context;
      let own = owned;
      for (const [i, part] of parts.entries()) {
        const made = part.update(update, substate(state, keys[i]!), { ...context, owned: owned && own });
        own = writable(made, update, own);
        update = made.update;
        Object.assign(next, prefixed(made.state, keys[i]!));
        how = combined(how, made.how);
        gated &&= made.gated === true || Object.keys(made.state).length === 0;
      }
      return { update, state: next, gated, ...(how === undefined ? {} : { how }) };
    },
    begin: (state, entries, parameter) =>
      Object.assign(
        {},
        ...parts.map((part, i) => prefixed(beginEntries(part, substate(state, keys[i]!), entries, parameter), keys[i]!)),
      ) as State,
    ...(measuring ? { measure: (gradient, state) => first!.measure!(gradient, substate(state, keys[0]!)) } : {}),
    ...(parts.some(({ prepare }) => prepare !== undefined)
      ? {
          due: (state, context) => parts.some((part, i) => due(part, i, state, context)),
          prepare: async (gradient, state, context) => {
            const next: State = {};
            for (const [i, part] of parts.entries()) {
              const own = substate(state, keys[i]!);
              Object.assign(next, prefixed(due(part, i, state, context) ? await part.prepare!(gradient, own, context) : own, keys[i]!));
            }
            return next;
          },
        }
      : {}),
  };
}

/** One key a part: its name, numbered where two parts share it. */
function stateKeys(parts: readonly Transform[]): string[] {
  const seen = new Map<string, number>();
  return parts.map(({ name }) => {
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count === 1 ? name : `${name}${count}`;
  });
}

function checkMeasures(parts: readonly Transform[]): boolean {
  const measuring = parts.filter(({ measure }) => measure !== undefined);
  if (measuring.length === 0) return false;
  if (measuring.length === 1 && measuring[0] === parts[0]) return true;
  const names = measuring.map(({ name }) => name).join(', ');
  throw new ConfigError(
    measuring.length > 1
      ? `one transform of a chain may measure all gradients, got ${names}`
      : `'${names}' measures the gradients as they arrive and must come first`,
    { measuring: measuring.map(({ name }) => name), help: 'Clip once, as the first part of the chain.' },
  );
}

/** One after another: what is kept of a value is kept of the rest, and factors of the update multiply. */
function combined(before: Commit | undefined, after: Commit | undefined): Commit | undefined {
  if (before === undefined || after === undefined) return before ?? after;
  const kept = ({ decay = 0 }: Commit): number => 1 - decay;
  return { ...before, ...after, decay: 1 - kept(before) * kept(after), scale: (before.scale ?? 1) * (after.scale ?? 1) };
}
