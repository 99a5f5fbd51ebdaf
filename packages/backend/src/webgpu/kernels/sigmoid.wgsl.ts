/** `sigmoid(x)`: no exponential of a positive number, hence no infinity, which WGSL lets a compiler assume away. */
export const sigmoid = `
fn sigmoid(x: f32) -> f32 {
  let e = exp(-abs(x));
  return select(e, 1.0, x >= 0.0) / (1.0 + e);
}`;
