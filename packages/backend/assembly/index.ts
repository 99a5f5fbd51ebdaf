export * from './gemm';
export * from './gemv';
export * from './micro-kernels';
export * from './self-test';
