import { add, mul, square, tanh, type Tensor } from '@niwaki/tensor';

/** Half of x times 1 + tanh(√(2/π)·(x + 0.044715·x³)): the form of GELU that adapters were trained with (Hendrycks & Gimpel 2016). */
export function gelu<T extends Tensor>(x: T): T {
  const inner = mul(mul(x, add(mul(square(x), 0.044715), 1)), Math.sqrt(2 / Math.PI));
  return mul(mul(x, 0.5), add(tanh(inner), 1)) as T;
}
