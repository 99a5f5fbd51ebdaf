// Replaced by the build, once for each variant: whether the relaxed-SIMD instructions may be used.
export const RELAXED: bool = false;
