export * from './init.ts';
