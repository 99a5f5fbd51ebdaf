/** Dimensions inside a block that nothing outside of it sees: what may be scaled, reordered or selected on both sides at once. */

/**
 * Rows of one map, or the entries of a norm's weight, that give what columns of others read. Dividing the source by a
 * factor an entry and multiplying the readers' columns by it changes nothing. Another order of units changes nothing
 * either, where `along` takes it too; behind a norm the order is that of the residual stream, and fixed.
 */
export interface Coupling {
  /** 'heads': values and the output map of attention; 'channels': hidden activations of an MLP; 'norm': a norm and what reads it. */
  readonly kind: 'heads' | 'channels' | 'norm';
  /** Units that the readers' columns fall into, one after another, and columns of each: heads of head size, channels of 1. */
  readonly units: number;
  readonly size: number;
  readonly source: CoupledRows;
  /** Rows that move with the units, and take no factor: queries and keys; the gate. */
  readonly along: readonly CoupledRows[];
  /** Paths of the sites whose columns read the source. */
  readonly readers: readonly string[];
  /** Units by their first number, where `permuteUnits` moved them; absent: as loaded. */
  order?: readonly number[];
}

/** Rows of a linear map with its bias, or a norm's weight. */
export interface CoupledRows {
  /** Of the site, or of the norm's module. */
  readonly path: string;
  /** Consecutive units that one of its own serves: query heads of a kv head; 1 elsewhere. */
  readonly serves: number;
}
