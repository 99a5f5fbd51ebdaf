import { describe, expect, it } from 'vitest';
import { ConfigError } from '@niwaki/tensor';
import { constant, cosine, linear, schedules, wsd, type Schedule } from '../src/index.ts';

const steps = 100;
const rates = (schedule: Schedule): number[] => Array.from({ length: steps }, (_, step) => schedule.rate(step, steps));

describe('a warm-up', () => {
  it.each([constant, linear, cosine, wsd])('of %o starts above zero, grows in equal parts and reaches the highest rate', (make) => {
    const list = rates(make({ learningRate: 8, warmup: 4 }));
    expect(list.slice(0, 5)).toEqual([2, 4, 6, 8, 8]);
    expect(Math.max(...list)).toBe(8);
  });

  it('below 1 is a part of the run', () => {
    expect(rates(linear({ learningRate: 1, warmup: 0.1 }))).toEqual(rates(linear({ learningRate: 1, warmup: 10 })));
  });

  it('as long as the run is all there is', () => {
    const schedule = cosine({ learningRate: 1, warmup: 500 });
    expect(schedule.rate(99, 100)).toBe(1);
    expect(schedule.rate(0, 100)).toBe(0.01);
  });
});

describe('a schedule', () => {
  it('that is constant stays', () => {
    expect(new Set(rates(constant({ learningRate: 3 })))).toEqual(new Set([3]));
  });

  it('that is linear falls in equal parts and would reach the floor one step after the last', () => {
    const schedule = linear({ learningRate: 10, warmup: 50 });
    expect(schedule.rate(50, steps)).toBe(10);
    expect(schedule.rate(75, steps)).toBe(5);
    expect(schedule.rate(99, steps)).toBeCloseTo(0.2, 12);
    expect(schedule.rate(100, steps)).toBe(0);
    expect(linear({ learningRate: 10, floor: 0.1 }).rate(100, steps)).toBe(1);
  });

  it('that is a cosine passes half of the way in the middle', () => {
    const schedule = cosine({ learningRate: 2, floor: 0.5 });
    expect(schedule.rate(0, steps)).toBe(2);
    expect(schedule.rate(25, steps)).toBeCloseTo(1 + (1 + Math.SQRT1_2) / 2, 12);
    expect(schedule.rate(50, steps)).toBeCloseTo(1.5, 12);
    expect(schedule.rate(100, steps)).toBeCloseTo(1, 12);
  });

  it('of warm-up, stable and decay stays until its last part', () => {
    const schedule = wsd({ learningRate: 4, warmup: 10, decay: 0.2 });
    expect(schedule.rate(10, steps)).toBe(4);
    expect(schedule.rate(80, steps)).toBe(4);
    expect(schedule.rate(90, steps)).toBe(2);
    expect(schedule.rate(99, steps)).toBeCloseTo(0.2, 12);
    expect(wsd({ learningRate: 4, decay: 20, shape: 'sqrt' }).rate(85, steps)).toBe(2);
    expect(wsd({ learningRate: 4, decay: 0 }).rate(99, steps)).toBe(4);
  });

  it('never rises after its warm-up and never leaves its bounds', () => {
    const falling = [linear, cosine, wsd].map((make) => make({ learningRate: 1, warmup: 7, floor: 0.1 }));
    for (const schedule of [constant({ learningRate: 1, warmup: 7 }), ...falling]) {
      const list = rates(schedule).slice(7);
      for (const [i, rate] of list.entries()) {
        expect(rate).toBeLessThanOrEqual(i === 0 ? 1 : list[i - 1]!);
        expect(rate).toBeGreaterThanOrEqual(0.1);
      }
    }
  });

  it('is data: what JSON gives back makes the same rates', () => {
    for (const schedule of [cosine({ learningRate: 1e-3, warmup: 0.1, floor: 0.1 }), wsd({ learningRate: 1, decay: 5, shape: 'sqrt' })]) {
      const { kind, ...options } = JSON.parse(JSON.stringify(schedule)) as { kind: string; learningRate: number };
      expect(rates(schedules[kind]!(options))).toEqual(rates(schedule));
    }
    expect(JSON.stringify(cosine({ learningRate: 1 }))).toBe('{"kind":"cosine","learningRate":1}');
  });

  it('refuses what is out of range', () => {
    expect(() => cosine({ learningRate: NaN })).toThrow(ConfigError);
    expect(() => cosine({ learningRate: 1, warmup: -1 })).toThrow(ConfigError);
    expect(() => linear({ learningRate: 1, floor: 2 })).toThrow(ConfigError);
    expect(() => wsd({ learningRate: 1, decay: -0.5 })).toThrow(ConfigError);
    expect(() => wsd({ learningRate: 1, shape: 'round' as never })).toThrow(ConfigError);
  });
});
