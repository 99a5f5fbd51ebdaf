import type { Json } from '@niwaki/tensor';

export type QuantizationConfig = { readonly [field: string]: Json };

/** What a model's config says about its stored form, where it says anything. */
export function quantizationConfig(config: Json): QuantizationConfig | undefined {
  if (typeof config !== 'object' || config === null || !('quantization_config' in config)) return undefined;
  const found = config.quantization_config;
  return typeof found === 'object' && found !== null && !Array.isArray(found) ? (found as QuantizationConfig) : undefined;
}
