import { getGradient, registerGradient } from '@tensorflow/tfjs-core';
import { binaryGradients } from './binary.ts';
import { imageGradients } from './image.ts';
import { reductionGradients } from './reduction.ts';
import { shapeGradients } from './shape.ts';
import { unaryGradients } from './unary.ts';

/**
 * tfjs-core alone knows no gradients: only the umbrella package registers them, with layers and every op of tfjs behind it,
 * and its own file of them cannot be imported in Node. These cover the ops that `@niwaki/tensor` exports, and those of
 * small convolutional nets. A gradient that is there already (a page that loaded all of tfjs) stays.
 */
export function registerGradients(): void {
  for (const gradient of [...unaryGradients, ...binaryGradients, ...shapeGradients, ...reductionGradients, ...imageGradients]) {
    if (getGradient(gradient.kernelName) === undefined) registerGradient(gradient);
  }
}
