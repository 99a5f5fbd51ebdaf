import { add, mul, sigmoid, sub, type Tensor } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/** Inputs gate, up of equal shape. Output [silu(gate) · up]. */
export const swigluOp: Op<{ gate: Tensor; up: Tensor }, object> = {
  kernelName: 'NiwakiSwiglu',
  reference: ({ gate, up }) => [mul(mul(gate, sigmoid(gate)), up)],
};

/** Inputs dy, gate, up. Outputs [dgate, dup]. */
export const swigluGradOp: Op<{ dy: Tensor; gate: Tensor; up: Tensor }, object> = {
  kernelName: 'NiwakiSwigluGrad',
  reference: ({ dy, gate, up }) => {
    const s = sigmoid(gate);
    const silu = mul(gate, s);
    // d silu/d gate = s + silu·(1 - s)
    const slope = add(s, mul(silu, sub(1, s)));
    return [mul(mul(dy, up), slope), mul(dy, silu)];
  },
};

/** silu(gate) · up, entry by entry (Shazeer 2020). Saves both inputs. */
export function swiglu<T extends Tensor>(gate: T, up: T): T {
  const valueOf = (g: Tensor, u: Tensor): Tensor => runOp(swigluOp, { gate: g, up: u }, {})[0]!;
  return withGradient(
    [gate, up],
    (save) => {
      save([gate, up]);
      return valueOf(gate, up);
    },
    (dy, [g, u]) => runOp(swigluGradOp, { dy, gate: g!, up: u! }, {}),
    { remake: ([g, u]) => valueOf(g!, u!) },
  ) as T;
}
