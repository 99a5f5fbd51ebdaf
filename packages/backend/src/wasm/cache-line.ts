/** The next multiple of the bytes that a core reads at once: what threads write to begins on a line of its own. */
export const onCacheLine = (bytes: number): number => Math.ceil(bytes / 64) * 64;
