export * from './traits.ts';
export * from './method.ts';
export * from './objective.ts';
export * from './estimator.ts';
export * from './step.ts';
