import { ConfigError, type Parameter } from '@niwaki/tensor';
import type { Model, Stage } from '@niwaki/nn';

/** What a backward pass over a model visits, for one choice of trained parameters. */
export interface Route {
  readonly stages: readonly Stage[];
  /** Index of the last stage, which the objective reads. */
  readonly head: number;
  /** The lowest stage with something to train: below it nothing is differentiated, kept or computed again. */
  readonly first: number;
  /** Trained parameters each stage reads. */
  readonly trained: readonly (readonly Parameter[])[];
  /** Entering streams of each stage that depend on a trained parameter: gradients go into them. */
  readonly dependent: readonly (readonly string[])[];
  /** Stages that read a parameter, ascending: its gradient is final after the first of them. */
  readonly uses: ReadonlyMap<Parameter, readonly number[]>;
}

export function routeOf(model: Pick<Model, 'stages'>, wrt: ReadonlySet<Parameter>): Route {
  const stages = model.stages();
  const uses = new Map<Parameter, number[]>();
  const trained = stages.map((stage, s) => {
    const own = [...new Set(stage.parameters())].filter((parameter) => wrt.has(parameter));
    for (const parameter of own) uses.set(parameter, [...(uses.get(parameter) ?? []), s]);
    return own;
  });
  const first = trained.findIndex((own) => own.length > 0);
  for (const parameter of wrt) {
    if (uses.has(parameter)) continue;
    throw new ConfigError(`no stage of the model reads '${parameter.path}', so it has no gradient`, {
      path: parameter.path,
      help: 'Attach its adapter first, or leave it out.',
    });
  }
  if (first < 0)
    throw new ConfigError('nothing to train: no parameter was chosen', {
      help: 'Adapt the model first, or set `trainable` on some of its parameters.',
    });
  return { stages, head: stages.length - 1, first, trained, dependent: dependentStreams(stages, trained), uses };
}

/**
 * Whether gradients go through a stage. Through one that neither trains nor reads what depends on something trained (a
 * base beside a side network) none do: it is not recorded and not computed again.
 */
export const differentiates = ({ trained, dependent }: Route, s: number): boolean => trained[s]!.length > 0 || dependent[s]!.length > 0;

function dependentStreams(stages: readonly Stage[], trained: Route['trained']): Route['dependent'] {
  const dependent = new Set<string>();
  return stages.map(({ reads, writes, constants = [] }, s) => {
    const entering = reads.filter((name) => dependent.has(name) && !constants.includes(name));
    const depends = entering.length > 0 || trained[s]!.length > 0;
    for (const name of writes) {
      if (depends) dependent.add(name);
      else dependent.delete(name);
    }
    return entering;
  });
}
