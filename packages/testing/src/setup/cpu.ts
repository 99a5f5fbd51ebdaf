import { init } from '@niwaki/backend';

await init({ device: 'cpu' });
