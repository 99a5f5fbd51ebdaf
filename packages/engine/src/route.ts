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
  /** Stages that read a parameter, ascending: its gradient is final after the first of them. */
  readonly uses: ReadonlyMap<Parameter, readonly number[]>;
}

export function routeOf(model: Model, wrt: ReadonlySet<Parameter>): Route {
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
  return { stages, head: stages.length - 1, first, trained, uses };
}
