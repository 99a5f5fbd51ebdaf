// Starts the device, or says why it cannot; each GPU test asks again and skips.
import { gpuMissing } from '../gpu.ts';

await gpuMissing();
