import type { Tensor } from '@niwaki/tensor';
import type { Carry, Stage } from './graph.ts';

/** Streams a stage reads that have a row for each row of 'h': where only some rows go on, these are cut. None without 'h'. */
export function rowStreams({ reads, constants = [] }: Stage, carry: Carry): readonly string[] {
  const rows = carry['h']?.shape[0];
  return reads.filter((name) => rows !== undefined && !constants.includes(name) && carry[name]?.shape[0] === rows);
}

/** What a stage reads, with `pick` of the streams that have rows. */
export function pickRows(stage: Stage, carry: Carry, pick: (stream: Tensor) => Tensor): Carry {
  const cut = new Set(rowStreams(stage, carry));
  return Object.fromEntries(
    stage.reads.flatMap((name) => (carry[name] === undefined ? [] : [[name, cut.has(name) ? pick(carry[name]) : carry[name]]])),
  );
}
