export * from './traits.ts';
export * from './method.ts';
export * from './objective.ts';
export * from './language.ts';
export * from './estimator.ts';
export * from './backprop.ts';
export { type GradientPlan, type GradientPlanEntry } from './gradient-plan.ts';
export * from './step.ts';
