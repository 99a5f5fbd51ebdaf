import { init } from '@niwaki/backend';

await init({ device: 'wasm', threads: Number(process.env['NIWAKI_THREADS'] ?? 1) });
