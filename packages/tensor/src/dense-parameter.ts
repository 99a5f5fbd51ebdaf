import { ConfigError, ShapeError, StateError } from './errors.ts';
import { add, keep, maximum, minimum, mul, reshape, tidy, type Scalar, type Tensor } from './tfjs.ts';
import type { Commit, Constraint, FileType, Gradient, Parameter, Places, RawTensor, Role } from './parameter.ts';
import { choose } from './ops/choose.ts';
import { commitUpdate } from './ops/commit-update.ts';
import { unpackFields } from './ops/unpack-fields.ts';
import { bytesOf } from './packed/words.ts';

export interface DenseParameterOptions {
  readonly role: Role;
  readonly trainable?: boolean;
  readonly constraint?: Constraint;
  readonly places?: Places;
  /** Logical shape where the stored tensor is packed words; default the tensor's own. */
  readonly shape?: readonly number[];
  /** Called after every change: for whoever keeps the value in a second place too. */
  readonly written?: (value: Tensor) => void;
  /** How `raw()` names and measures the bytes of packed words. */
  readonly file?: FileType;
}

const neverTrained: ReadonlySet<Role> = new Set<Role>(['codes', 'index', 'statistic']);

/** A parameter that is one tensor on the device: dense f32, or the int32 words of something packed. It owns the tensor. */
export function denseParameter(path: string, value: Tensor, options: DenseParameterOptions): Parameter {
  const { role, constraint, places, written, file } = options;
  const shape = options.shape ?? value.shape;
  let stored: Tensor | undefined = keep(value);
  let version = 0;
  let trainable = false;

  const read = (): Tensor => {
    if (stored === undefined) throw new StateError(`parameter '${path}' was disposed`, { path, help: 'Load or build the model again.' });
    return stored;
  };
  const write = (next: Tensor): void => {
    const old = read();
    if (next === old) return;
    if (next.dtype !== old.dtype || next.shape.join() !== old.shape.join()) {
      throw new ShapeError(`parameter '${path}' holds ${old.dtype} [${old.shape}], got ${next.dtype} [${next.shape}]`, {
        path,
        expected: old.shape,
        given: next.shape,
      });
    }
    stored = keep(next);
    old.dispose();
    version++;
    written?.(next);
  };

  const parameter: Parameter = {
    path,
    shape,
    role,
    get trainable() {
      return trainable;
    },
    set trainable(on: boolean) {
      if (on && neverTrained.has(role)) throw new ConfigError(`'${path}' has the role ${role}, which no gradient trains`, { path, role });
      trainable = on;
    },
    get version() {
      return version;
    },
    bytes: () => (stored === undefined ? 0 : stored.size * 4),
    read,
    write,
    commit: (update, ok, how) => write(tidy(() => committed(read(), update, ok, how, constraint))),
    raw: async (): Promise<RawTensor> => {
      const values = await read().data();
      if (file === undefined) return { dtype: read().dtype === 'int32' ? 'I32' : 'F32', shape, bytes: bytesOf(values) };
      return { dtype: file.dtype, shape: file.shape, bytes: bytesOf(values, file.bytes) };
    },
    dispose: () => {
      stored?.dispose();
      stored = undefined;
    },
    ...(constraint === undefined ? {} : { constraint }),
    ...(places === undefined ? {} : { places }),
    ...(file === undefined ? {} : { file }),
  };
  if (options.trainable) parameter.trainable = true;
  return parameter;
}

/** decay → add → constraint, and the old value bit for bit where the step was refused. */
function committed(old: Tensor, update: Gradient, ok: Scalar, how: Commit | undefined, constraint: Constraint | undefined): Tensor {
  const moved = denseUpdate(update, old);
  const { decay = 0, scale = 1, owned = false } = how ?? {};
  if (constraint === undefined) return commitUpdate(old, moved, ok, { keep: 1 - decay, scale, owned });
  let next = add(decay === 0 ? old : mul(old, 1 - decay), scale === 1 ? moved : mul(moved, scale));
  if (constraint?.mask && 'bits' in constraint.mask) next = mul(next, entryMask(constraint.mask.bits, old.shape));
  if (constraint?.floor !== undefined) next = maximum(next, constraint.floor);
  if (constraint?.box) next = minimum(maximum(next, constraint.box[0]), constraint.box[1]);
  return choose(ok, next, old);
}

/** A mask as f32 of a shape: as it is, or one bit an entry in int32 words. */
export function entryMask(bits: Tensor, shape: readonly number[]): Tensor {
  if (bits.dtype !== 'int32') return bits;
  const count = shape.reduce((product, side) => product * side, 1);
  return tidy(() => reshape(unpackFields(bits, { bits: 1, count }), [...shape]));
}

function denseUpdate(update: Gradient, like: Tensor): Tensor {
  if (update.kind === 'dense') return update.value;
  throw new ConfigError(`a dense parameter commits dense updates, got '${update.kind}'`, {
    kind: update.kind,
    shape: like.shape,
    help: 'Let the transform materialize the update first.',
  });
}
