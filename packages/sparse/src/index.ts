export * from './lisa.ts';
