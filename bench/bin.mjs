#!/usr/bin/env node
/** `pnpm bench …`: builds what has changed, then measures. A command and not a script of package.json, before which pnpm writes to stdout. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const setup = fileURLToPath(new URL('../scripts/setup.mjs', import.meta.url));
const { status } = spawnSync(process.execPath, [setup, '--quiet'], { stdio: ['ignore', 2, 2] });
if (status !== 0) process.exit(status ?? 1);
await import('./run.mjs');
