/** Rows in front of the tokens that stand for none of them: prompts and prefixes of the active adapters. */
import { add, concat, fill, range, reshape, tile, zeros, type Tensor, type Tensor2D, type Tensor4D } from '@niwaki/tensor';
import type { Batch, Call } from '@niwaki/weights';
import { tokenIdsOf, type KeyBounds } from './batch.ts';
import type { RopePositions } from './decoder/rope-tables.ts';
import type { Site } from './graph.ts';
import { cacheOf } from './kv-cache.ts';
import { activeSets, type Attached } from './run-site.ts';

/** Rows that the prompts of the active sets put in front of a sequence. */
export const promptRows = (site: Site, call: Call, attached: Attached): number =>
  activeSets(call, attached).reduce((sum, { sites }) => sum + (sites.get(site.path)?.prompt?.count ?? 0), 0);

/** Positions before the first row: the longest prefix of each active set, whatever the layer. */
const prefixPositions = (call: Call, attached: Attached): number =>
  activeSets(call, attached).reduce(
    (sum, { sites }) => sum + [...sites.values()].reduce((most, { prefix }) => Math.max(most, prefix?.count ?? 0), 0),
    0,
  );

/** h [batch · time, width] with the active prompts before every sequence: [batch · (prompt + time), width]. */
export function withPrompts(
  site: Site,
  h: Tensor2D,
  { batch, time }: { batch: number; time: number },
  call: Call,
  attached: Attached,
): Tensor2D {
  const width = h.shape[1];
  const prompts = activeSets(call, attached).flatMap(({ sites }) => sites.get(site.path)?.prompt ?? []);
  const rows = prompts.map((prompt) => add(zeros([batch, prompt.count, width]), reshape(prompt.rows(call), [1, prompt.count, width])));
  return reshape(concat([...rows, reshape(h, [batch, time, width])], 1), [-1, width]);
}

/**
 * Positions of the rows that leave the embedding, prompts included: behind what is cached and behind the prefixes.
 * @param site the embedding
 */
export function rowPositions(site: Site, call: Call, attached: Attached): RopePositions {
  const [batch, time] = tokenIdsOf(call.batch).shape;
  const past = cacheOf(call.session)?.length ?? 0;
  const shift = promptRows(site, call, attached);
  const prompt = past === 0 ? shift : 0;
  const start = prefixPositions(call, attached) + shift - prompt;
  const given = ledPositions(call.batch['positions'], { batch, time, prompt, start });
  return { batch, time: prompt + time, past: start + past, given };
}

/** Positions of the rows with prompts in front; undefined where they count up from `start`. */
function ledPositions(
  given: Batch[string],
  { batch, time, prompt, start }: { batch: number; time: number; prompt: number; start: number },
): Batch[string] {
  if (given === undefined || (prompt === 0 && start === 0)) return given;
  if ('dtype' in given) {
    const lead = tile(reshape(range(start, start + prompt, 1, 'int32'), [1, prompt]), [batch, 1]);
    const own = add(reshape(given, [batch, time]), fill([batch, time], start + prompt, 'int32'));
    return prompt === 0 ? own : concat([lead, own], 1);
  }
  return Array.from({ length: batch }, (_, b) => [
    ...Array.from({ length: prompt }, (_, i) => start + i),
    ...given.slice(b * time, (b + 1) * time).map((position) => start + prompt + position),
  ]).flat();
}

/** Bounds over keys that begin with `shift` rows of prompts, and with the `fresh` prompts' own queries in front: causal among themselves. */
export function ledBounds({ from, to }: KeyBounds, { shift, fresh }: { shift: number; fresh: number }): KeyBounds {
  const moved = { from: shifted(from, shift), to: shifted(to, shift) };
  if (fresh === 0) return moved;
  const batch = from.shape[0];
  const upTo = tile(reshape(range(1, fresh + 1, 1, 'int32'), [1, fresh]), [batch, 1]);
  return {
    from: concat([zeros([batch, fresh], 'int32'), moved.from], 1) as Tensor2D,
    to: concat([upTo, moved.to], 1) as Tensor2D,
  };
}

export const shifted = (bound: Tensor2D, by: number): Tensor2D => (by === 0 ? bound : add(bound, fill(bound.shape, by, 'int32')));

/** Rows that the active prefixes of a layer put before its keys. */
export const prefixRows = (site: Site, call: Call, attached: Attached): number =>
  activeSets(call, attached).reduce((sum, { sites }) => sum + (sites.get(site.path)?.prefix?.count ?? 0), 0);

/** Keys and values [batch, time, heads, d] with the active prefixes of the layer in front. */
export function withPrefixes<T extends { readonly k: Tensor4D; readonly v: Tensor4D }>(
  site: Site,
  { k, v }: T,
  call: Call,
  attached: Attached,
): { readonly k: Tensor4D; readonly v: Tensor4D } {
  const [batch, , heads, d] = k.shape;
  const prefixes = activeSets(call, attached).flatMap(({ sites }) => sites.get(site.path)?.prefix ?? []);
  const led = (own: Tensor4D, of: (prefix: (typeof prefixes)[number]) => Tensor): Tensor4D =>
    concat(
      [...prefixes.map((prefix) => add(zeros([batch, prefix.count, heads, d]), reshape(of(prefix), [1, prefix.count, heads, d]))), own],
      1,
    ) as Tensor4D;
  return { k: led(k, (prefix) => prefix.keys(call)), v: led(v, (prefix) => prefix.values(call)) };
}
