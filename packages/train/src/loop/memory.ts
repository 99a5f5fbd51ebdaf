import { memory, type Parameter } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import type { Step } from '@niwaki/engine';
import type { MemoryByOwner } from './events.ts';

/** Parameters of the model's attached adapters, replaced modules included. */
export function adapterParameters(model: Model): Set<Parameter> {
  const found = new Set<Parameter>();
  for (const set of model.adapters.values()) {
    for (const adapter of set.sites.values()) for (const parameter of Object.values(adapter.parameters)) found.add(parameter);
    for (const parameter of set.replaced.values()) found.add(parameter);
  }
  return found;
}

/** Who holds how many bytes now. */
export function memoryByOwner(model: Model, step: Pick<Step, 'plan' | 'stateBytes'>): MemoryByOwner {
  const adapters = adapterParameters(model);
  const bytes = { base: 0, adapter: 0, trained: 0 };
  const parameters = new Set([...model.parameters().values(), ...adapters]);
  for (const parameter of parameters)
    bytes[adapters.has(parameter) ? 'adapter' : parameter.trainable ? 'trained' : 'base'] += parameter.bytes();
  return { ...bytes, optimizer: step.stateBytes(), gradients: step.plan.peakBytes, total: memory().numBytes };
}
