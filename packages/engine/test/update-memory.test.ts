import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { expect, it } from 'vitest';
import {
  adamOp,
  createDraw,
  denseParameter,
  keep,
  memory,
  openMemoryLedger,
  scalar,
  tensor,
  tidy,
  type Gradient,
  type Tensor,
} from '@niwaki/tensor';
import { adamw, chain, clipByEntry, sgd, type Transform } from '@niwaki/optim';
import { beside } from '../../testing/src/beside.ts';
import { createOptimizerStates } from '../src/optimizer-state.ts';

const size = 2 ** 16 + 3;
/** Bias corrections, what they are made from, and the three factors of moments in 8 bits. */
const scalars = 64;
/** Bytes of both moments in blocks of 256 that share a scale. */
const codes = 2 * (4 * Math.ceil(size / 4) + 4 * Math.ceil(size / 256));

const wave = (phase: number): Tensor =>
  tensor(
    Float32Array.from({ length: size }, (_, i) => Math.sin(phase + i)),
    [size],
  );

/** Most bytes that the third update of one parameter takes beside value, state and gradient, and what it changes, bit for bit. */
function thirdUpdate(optimizer: Transform): { peak: number; values: readonly string[] } {
  const ledger = openMemoryLedger();
  const parameter = denseParameter('p', wave(0), { role: 'matrix', trainable: true });
  const states = createOptimizerStates(optimizer, [parameter]);
  states.select(new Set([parameter]), 0);
  const ok = scalar(1);
  let peak = 0;
  for (let attempt = 0; attempt < 3; attempt++) {
    const updates = scalar(attempt + 1);
    const gradient: Gradient & { kind: 'dense' } = { kind: 'dense', value: keep(wave(attempt + 1)) };
    const before = ledger.bytes();
    ledger.resetPeak();
    tidy(() => states.apply(gradient, ok, { parameter, attempt, updates, rate: 0.01, progress: 0, draw: createDraw(1, attempt) }));
    peak = ledger.peak() - before;
    updates.dispose();
    // A gradient's memory that became the value's is counted once.
    expect(ledger.bytes()).toBe(before - 4 * size - 4);
  }
  const values = [parameter.read(), ...Object.values(states.get(parameter))].map((each) => bitsOf(each as Tensor));
  states.dispose();
  parameter.dispose();
  ok.dispose();
  ledger.dispose();
  return { peak, values };
}

const bitsOf = (value: Tensor): string => {
  const { buffer, byteOffset, byteLength } = value.dataSync();
  return Buffer.from(buffer, byteOffset, byteLength).toString('base64');
};

// Beside: moments and direction; the new value comes when the gradient has gone.
it.each<[string, Transform, { beside: number; over: number }]>([
  ['AdamW', adamw({ learningRate: 0.01, weightDecay: 0.1 }), { beside: 3 * 4 * size, over: 0 }],
  ['AdamW with state in 8 bits', adamw({ learningRate: 0.01, weightDecay: 0.1, state: '8bit' }), { beside: 4 * size + codes, over: 0 }],
  // What is clipped is a second gradient.
  ['AdamW behind a clip', chain(clipByEntry(0.5), adamw({ learningRate: 0.01 })), { beside: 4 * 4 * size, over: 4 * size }],
  ['SGD', sgd({ learningRate: 0.01 }), { beside: 4 * size, over: 0 }],
])('an update by %s takes no memory where a device writes it over what the step owns', (_, optimizer, expected) => {
  const before = memory().numDataBuffers;
  const [over, apart] = [thirdUpdate(optimizer), thirdUpdate(beside(optimizer))];
  expect(over.values).toEqual(apart.values);
  // The reference writes over nothing.
  const fused = getKernel(adamOp.kernelName, getBackend()) !== undefined;
  for (const [peak, bytes] of [
    [apart.peak, expected.beside],
    [over.peak, fused ? expected.over : expected.beside],
  ] as const) {
    expect(peak).toBeGreaterThanOrEqual(bytes);
    expect(peak).toBeLessThanOrEqual(fused ? bytes + scalars : Infinity);
  }
  expect(memory().numDataBuffers).toBe(before);
});
