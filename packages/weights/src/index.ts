export * from './call.ts';
export * from './format.ts';
export { fingerprintOf } from './fingerprint.ts';
export * from './weight.ts';
export { frozenMatrix } from './frozen.ts';
export * from './rows.ts';
export * from './dense.ts';
export * from './codebook4.ts';
export { encodeCodebook4, type EncodeCodebook4Options } from './encode-codebook4.ts';
export * from './normal-float-book.ts';
export * from './normal-float.ts';
export * from './affine-grid.ts';
export * from './affine.ts';
export * from './trained-affine.ts';
export * from './encode-affine.ts';
export * from './fake-quant.ts';
export * from './activation-quantizer.ts';
export * from './gguf-block.ts';
export * from './encode-gguf.ts';
export * from './low-rank.ts';
export { choosePlaces, sliceWeight, type Chosen, type SliceOptions } from './slice.ts';
export { trainedSlice, type TrainedSlice, type TrainedSliceOptions } from './trained-slice.ts';
export { isSparse, maskOf, packMask } from './entry-mask.ts';
export { masked } from './masked.ts';
export { sparseFormOf, sparseWeight, type SparseForm, type Store } from './sparse-weight.ts';
export * from './stored-values.ts';
export {
  inputFrom,
  recordOfInput,
  recordOfWeight,
  weightFrom,
  type InputRecord,
  type PartRecord,
  type WeightRecord,
} from './weight-record.ts';
export { checkGroups, checkNOfM, indexBits, nOfM, packNOfM, type NOfM } from './n-of-m.ts';
export { csr, packCsr, type CsrParts } from './csr.ts';
export { checkPlaces, flatPlaces, packPlaces, placedParameters, sparseDelta, type SparseDeltaParts } from './sparse-delta.ts';
export { entriesOf, largestOf, type Largest } from './entries.ts';
export { summed } from './sum.ts';
export { weightStack } from './stack.ts';
export * from './traits.ts';
