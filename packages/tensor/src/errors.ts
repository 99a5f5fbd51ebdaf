/**
 * Errors teach: what was given, what was expected, where, and what to do. The data is on the error, not only in its text.
 * A marker instead of `instanceof` keeps the check true across duplicated copies of the package.
 */
const marker = 'niwaki.error';

export interface ErrorDetails {
  /** What to do about it, one sentence. */
  readonly help?: string;
  readonly cause?: unknown;
  readonly [field: string]: unknown;
}

export class NiwakiError extends Error {
  /** Marks the class across copies of the package. */
  readonly marker = 'niwaki.error' as const;
  readonly help: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(message: string, { help, cause, ...details }: ErrorDetails = {}) {
    super(help === undefined ? message : `${message}\n  help: ${help}`, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    this.help = help;
    this.details = details;
  }

  /** Whether a value is an error of this class, made by this copy of the package or another: `DeviceError.isInstance(error)`. */
  static isInstance<E extends typeof NiwakiError>(this: E, value: unknown): value is InstanceType<E> {
    if (value instanceof this) return true;
    if (typeof value !== 'object' || value === null || (value as { marker?: unknown }).marker !== marker) return false;
    return this === NiwakiError || (value as { name?: unknown }).name === this.name;
  }
}

/** Shapes, ranks or sizes that do not fit together. */
export class ShapeError extends NiwakiError {}
/** An option out of its range, an unknown name, a combination that cannot be. */
export class ConfigError extends NiwakiError {}
/** A file or stream that is not what it claims to be, or holds something we do not read. */
export class FormatError extends NiwakiError {}
/** A path, pattern, file or name that matches nothing. */
export class NotFoundError extends NiwakiError {}
/** A device that is absent, lost, or out of memory. */
export class DeviceError extends NiwakiError {}
/** A number that is not finite, or a factorization that does not exist. */
export class NumericError extends NiwakiError {}
/** Training or inference data that cannot be used. */
export class DataError extends NiwakiError {}
/** A call at the wrong moment: merged twice, disposed, already attached. */
export class StateError extends NiwakiError {}
/** The caller's AbortSignal fired. */
export class AbortError extends NiwakiError {}

/** Throws `AbortError` once the signal has fired; called between pieces of long work. */
export function throwIfAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted) throw new AbortError(`${what} was aborted`, { cause: signal.reason });
}
