import { describe, expect, it } from 'vitest';
import type { Method } from '@niwaki/engine';
import { expectNoTraceOfStops } from '../../testing/src/walk-stops.ts';
import { dsnot, sparsegpt, wanda } from '../src/index.ts';

const walks: Readonly<Record<string, () => Method>> = {
  wanda: () => wanda({ sparsity: 0.5 }),
  'wanda, 2:4 alone stored': () => wanda({ n: 2, m: 4, store: 'n-of-m' }),
  sparsegpt: () => sparsegpt({ sparsity: 0.6 }),
  'sparsegpt, in rows': () => sparsegpt({ sparsity: 0.6, store: 'csr' }),
  dsnot: () => dsnot({ initial: wanda({ sparsity: 0.5 }), refine: 'all' }),
};

describe('a walk that is stopped after each block and goes on', () => {
  it.each(Object.entries(walks))('ends bit for bit where one without a stop ends: %s', async (_, make) => {
    expect(await expectNoTraceOfStops(make)).toBe(4);
  });
});
