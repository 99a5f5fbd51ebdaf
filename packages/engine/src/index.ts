export * from './objective.ts';
export * from './estimator.ts';
export * from './step.ts';
