/** Stages that adapters bring along, among those of the model. */
import { ConfigError } from '@niwaki/tensor';
import type { AdapterSet, Model, Stage } from './graph.ts';
import { activeSets } from './run-site.ts';
import { adaptersAt, type StageSpec } from './stage-parameters.ts';

/**
 * What a set adds, by the stage that it runs behind.
 * @throws ConfigError for a stage behind the head, whose outputs nothing may come after
 */
export function addedStages(set: AdapterSet, specs: readonly StageSpec[], model: Model): ReadonlyMap<StageSpec, readonly Stage[]> {
  const head = specs.at(-1);
  const added = new Map<StageSpec, readonly Stage[]>();
  for (const spec of specs) {
    const own = adaptersAt(spec, set).flatMap((adapter) => adapter.stages?.(model) ?? []);
    if (own.length === 0) continue;
    if (spec === head)
      throw new ConfigError(`adapter '${set.name}' brings the stage '${own[0]!.path}', which would run behind the head '${spec.path}'`, {
        name: set.name,
        stage: own[0]!.path,
        help: 'Let the adapter at the head read the streams of stages before it.',
      });
    added.set(
      spec,
      own.map((stage): Stage => {
        const run: Stage['run'] = (carry, call) => (activeSets(call, model).includes(set) ? stage.run(carry, call) : {});
        return { ...stage, sites: [], run };
      }),
    );
  }
  return added;
}

/** Streams of added stages that adapters at a stage's places read. */
export const streamsReadAt = (spec: StageSpec, adapters: ReadonlyMap<string, AdapterSet>): readonly string[] =>
  [...adapters.values()].flatMap((set) => adaptersAt(spec, set).flatMap(({ reads = [] }) => reads));
