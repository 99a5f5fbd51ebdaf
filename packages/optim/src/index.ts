export * from './methods.ts';
export * from './transform.ts';
export * from './traits.ts';
export * from './part-of.ts';
export { checkRate } from './scale-by-learning-rate.ts';
export { takes, valueFor } from './groups.ts';
export { stateStoredAs } from './blockwise-state.ts';
export { beginEntries } from './begin-entries.ts';
export { schedules } from './schedules.ts';
