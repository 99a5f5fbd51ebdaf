import type { Warn, Warning } from '@niwaki/engine';

export type { Warn, Warning } from '@niwaki/engine';

/** Collects warnings, and tells whoever listens at once. */
export function collectWarnings(onWarning?: (warning: Warning) => void): { readonly list: readonly Warning[]; readonly warn: Warn } {
  const list: Warning[] = [];
  return {
    list,
    warn: (kind, message, names) => {
      const warning: Warning = { kind, message, names };
      list.push(warning);
      onWarning?.(warning);
    },
  };
}
