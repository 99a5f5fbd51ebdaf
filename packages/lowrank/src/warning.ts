/** Something a user should know that is no error: returned with the result and passed to `onWarning`, never printed. */
export interface Warning {
  readonly kind:
    | 'unknown-field'
    | 'default-field'
    | 'unused-pattern'
    | 'skipped-tensor'
    | 'base-name'
    | 'already-merged'
    | 'unused-exclude'
    | 'rank';
  readonly message: string;
  /** The names the message speaks of: config fields, tensors, patterns. */
  readonly names: readonly string[];
}

export type Warn = (kind: Warning['kind'], message: string, names: readonly string[]) => void;

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
