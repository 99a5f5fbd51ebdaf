import { gradientSuite } from './gradients-suite.ts';

gradientSuite();
