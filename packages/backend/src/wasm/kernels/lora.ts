import { loraGradOp, loraOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'x' | 'a' | 'b', TensorInfo>>;

/** Scratch for the tasks' shares in the gradients of the factors. */
const shareBytes = 16 << 20;
const [fewestShares, mostShares] = [4, 16];

/** An adapter's whole tail in one call forward and two backward, where composed ops take four and nine. */
export const loraKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs & { readonly base: TensorInfo }, { scale: number; unread: boolean }>(
    device,
    loraOp.kernelName,
    ({ base, x, a, b }, { scale, unread }) => {
      const { rows, width, out, rank } = sidesOf(x, b);
      const [y, inner] = [device.output([rows, out]), device.output([rows, rank])];
      const columns = unread ? 0 : out;
      device.run('lora', [...[base, x, a, b, y, inner].map(device.address), rows, width, columns, rank, scale], {
        tasks: Math.ceil(rows / device.kernels['loraRows']!()),
        work: rows * rank * (width + columns),
        scratchBytes: device.kernels['loraBytes']!(rank, width, columns),
      });
      return [y, inner];
    },
  ),
  wasmKernel<Inputs & Readonly<Record<'dy' | 'inner', TensorInfo>>, { scale: number }>(
    device,
    loraGradOp.kernelName,
    ({ dy, x, a, b, inner }, { scale }) => {
      const { rows, width, out, rank } = sidesOf(x, b);
      const [dx, da, db] = [x, a, b].map(({ shape }) => device.output(shape)) as [TensorInfo, TensorInfo, TensorInfo];
      const step = device.kernels['loraRows']!();
      const shareSize = rank * (width + out) * 4;
      const most = Math.min(mostShares, Math.max(fewestShares, Math.floor(shareBytes / shareSize)));
      // By the rows alone, never by the threads: sums then run in one order on every machine.
      const taskRows = step * Math.max(1, Math.ceil(rows / step / most));
      const shares = Math.ceil(rows / taskRows);
      const partial = device.shared(shares * shareSize);
      const sides = [rows, width, out, rank, scale];
      device.run('loraGrad', [...[dy, x, a, b, inner, dx].map(device.address), partial, ...sides, taskRows], {
        tasks: shares,
        work: 2 * rows * rank * (width + out),
        scratchBytes: device.kernels['loraBytes']!(rank, width, out),
      });
      device.run('loraFactors', [partial, shares, device.address(da), device.address(db), width, out, rank, scale], {
        tasks: Math.ceil(width / columnsOfTask) + Math.ceil(out / columnsOfTask),
        work: shares * rank * (width + out),
      });
      return [dx, da, db];
    },
  ),
];

/** As in assembly/lora.ts. */
const columnsOfTask = 256;

function sidesOf(x: TensorInfo, b: TensorInfo): { rows: number; width: number; out: number; rank: number } {
  const [rows, width] = x.shape as [number, number];
  const [out, rank] = b.shape as [number, number];
  return { rows, width, out, rank };
}
