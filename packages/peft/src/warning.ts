import type { Warn, Warning } from './adapter-method.ts';

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
