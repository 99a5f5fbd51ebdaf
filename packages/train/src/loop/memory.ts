import { openMemoryLedger, type Parameter } from '@niwaki/tensor';
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

export interface MemoryMeter {
  /** Call before a step: its peak is counted from here. */
  begin(): void;
  /** Who holds how many bytes now, and how many there were at most since `begin`. */
  report(): MemoryByOwner;
  dispose(): void;
}

/** Counts every tensor of the device while it is open. */
export function openMemoryMeter(model: Model, step: Pick<Step, 'plan' | 'stateBytes'>): MemoryMeter {
  const ledger = openMemoryLedger();
  return {
    begin: () => ledger.resetPeak(),
    report: () => {
      const owners = { ...parameterBytes(model), optimizer: step.stateBytes() };
      const atRest = Object.values(owners).reduce((sum, bytes) => sum + bytes, 0);
      const peak = ledger.peak();
      return { ...owners, gradients: step.plan.peakBytes, activations: Math.max(0, peak - atRest), peak, total: ledger.bytes() };
    },
    dispose: () => ledger.dispose(),
  };
}

function parameterBytes(model: Model): { base: number; adapter: number; trained: number } {
  const adapters = adapterParameters(model);
  const all = new Set([...model.parameters().values(), ...adapters]);
  const trained = new Set([...all].filter(({ trainable }) => trainable).flatMap((parameter) => parameter.stored ?? [parameter]));
  const bytes = { base: 0, adapter: 0, trained: 0 };
  for (const parameter of all)
    bytes[adapters.has(parameter) ? 'adapter' : trained.has(parameter) ? 'trained' : 'base'] += parameter.bytes();
  return bytes;
}
