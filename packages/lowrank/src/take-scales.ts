import type { PeftSet } from '@niwaki/peft';
import type { Adapter } from '@niwaki/nn';
import { isLora, type LoraAdapter } from './lora-adapter.ts';
import { loraScale, type LoraSettings } from './lora-options.ts';

/** Makes each pair of a set scale as the one at its path does. @returns the settings that say so */
export function takeScales({ method, sites }: PeftSet, from: ReadonlyMap<string, Adapter>): LoraSettings {
  for (const [path, own] of sites) {
    const other = from.get(path);
    if (isLora(own) && other !== undefined) own.alpha = alphaOf(own, other as LoraAdapter);
  }
  const settings = method.targeting as LoraSettings;
  const alphas = [...sites].flatMap(([path, adapter]) => (isLora(adapter) ? [[path, adapter.alpha] as const] : []));
  if (alphas.length === 0) return settings;
  const [, alpha] = alphas[0]!;
  const odd = alphas.filter(([, own]) => own !== alpha).map(([path, own]) => [`^${path.replaceAll('.', '\\.')}`, own]);
  return { ...settings, alpha, alphaPattern: Object.fromEntries(odd) as Record<string, number> };
}

/** What it takes, over the rank there is, to scale as the other one does. */
function alphaOf({ rank, rslora }: LoraAdapter, other: LoraAdapter): number {
  if (rank === other.rank && rslora === other.rslora) return other.alpha;
  return loraScale(other.alpha, other.rank, other.rslora) / loraScale(1, rank, rslora);
}
