import { ConfigError, FormatError, ShapeError } from '@niwaki/tensor';

/** Tensors that the config promises and the file lacks. `details.missing` lists them. */
export class MissingTensorsError extends FormatError {}
/** Tensors of the file that belong to nothing in the model, or to nothing the config targets. `details.unexpected` lists them. */
export class UnexpectedTensorsError extends FormatError {}
/** A tensor whose type is no floating point number. */
export class TensorTypeError extends FormatError {}
/** Ranks of the tensors that are not what the config says, or that disagree within one pair. */
export class RankError extends ShapeError {}
/** Config fields that change what the adapter computes, and that are not served here. `details.fields` lists them. */
export class UnsupportedFieldError extends ConfigError {}
/** An adapter made for another base model, where the caller asked to be told. */
export class BaseModelError extends ConfigError {}
