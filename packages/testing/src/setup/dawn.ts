import { init } from '@niwaki/backend';

await init({ device: 'webgpu', software: true });
