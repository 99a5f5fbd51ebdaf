import { contentHash, descriptionOf, type Json } from '@niwaki/tensor';
import { baseChanges, type Estimator, type Objective, type Participant } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import type { Schedule, Transform } from '@niwaki/optim';
import type { RunIdentity } from '../checkpoint/run-identity.ts';
import { adapterParameters } from './memory.ts';

interface Named extends Pick<RunIdentity, 'steps' | 'batchSize' | 'accumulate' | 'data'> {
  readonly model: Model;
  readonly seed: number | bigint;
  readonly optimizer: Transform;
  readonly schedule: Schedule | undefined;
  readonly participants: readonly Participant[];
  readonly objective: Objective;
  readonly estimator: Estimator;
}

/** What a run is, as its checkpoints say it. */
export function identityOf({ model, seed, optimizer, schedule, participants, objective, estimator, ...numbers }: Named): RunIdentity {
  const { steps, batchSize, accumulate, data } = numbers;
  return {
    seed: String(seed),
    steps,
    batchSize,
    accumulate,
    data,
    base: baseChanges(model),
    adapters: adaptersOf(model),
    model: modelHash(model),
    optimizer: descriptionOf(optimizer),
    participants: participants.map(({ name }) => name),
    schedule: schedule?.toJSON() ?? { kind: 'constant', learningRate: optimizer.learningRate! },
    objective: descriptionOf(objective),
    estimator: descriptionOf(estimator),
  };
}

/** Names a model's form: paths, shapes, roles, what of it is trained, and how each matrix is stored. Not its values. */
function modelHash(model: Model): string {
  const hash = contentHash();
  hash.text(model.info.family);
  const all = new Set([...model.parameters().values(), ...adapterParameters(model)]);
  const lines = [...all].map(({ path, shape, role, trainable }) => `${path} ${shape.join('x')} ${role} ${trainable}`);
  for (const { path, weight } of model.stages().flatMap(({ sites }) => sites))
    if (weight !== undefined) lines.push(`${path} ${weight.kind} ${JSON.stringify(weight.options)}`);
  for (const line of lines.sort()) hash.text(line);
  return hash.digest();
}

/** Method, options and use of each adapter, by name. */
const adaptersOf = (model: Model): { readonly [name: string]: Json } =>
  Object.fromEntries(
    [...model.adapters].map(([name, { method }]) => [
      name,
      {
        ...descriptionOf({ name: method.kind, options: method.options as { [option: string]: Json } }),
        active: model.active.includes(name),
      },
    ]),
  );
