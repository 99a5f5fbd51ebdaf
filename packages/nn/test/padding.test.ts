import { paddingSuite } from './padding-suite.ts';

paddingSuite();
