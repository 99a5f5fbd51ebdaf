import { runOp, type Op } from '../op.ts';
import { fill, type Tensor2D } from '../tfjs.ts';

/** No inputs. Output [a tensor of the shape] whose entries mean nothing; in the reference NaN, so that whoever reads them finds out. */
export const unwrittenOp: Op<Record<string, never>, { shape: readonly number[] }> = {
  kernelName: 'NiwakiUnwritten',
  reference: (_, { shape }) => [fill([...shape], NaN)],
};

/** f32 [rows, columns] that nobody may read: what stands for a value where only its gradient is asked for. */
export const unwritten = (rows: number, columns: number): Tensor2D => runOp(unwrittenOp, {}, { shape: [rows, columns] })[0] as Tensor2D;
