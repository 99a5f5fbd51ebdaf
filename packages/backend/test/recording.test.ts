import { getBackend } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { memory, mul, record, tensor1d } from '@niwaki/tensor';
import { recordingSuite } from './recording-suite.ts';

describe.skipIf(getBackend() === 'cpu')('recordings', () => void recordingSuite({ reads: true }));

it('are none on a device that takes nothing down, with nothing left behind', () => {
  if (getBackend() !== 'cpu') return;
  const before = memory().numTensors;
  const x = tensor1d([1, 2]);
  expect(record({ x }, ({ x: own }) => ({ y: mul(own, 2) }))).toBeUndefined();
  x.dispose();
  expect(memory().numTensors).toBe(before);
});
