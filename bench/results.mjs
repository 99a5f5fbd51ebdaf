/**
 * Rows of a measurement that takes long, in a file: written after every row, so that a run which was stopped goes on where it
 * was, and another one adds rows.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, type } from 'node:os';
import { dirname } from 'node:path';

/** This machine in words, as the generated pages name it. */
export const machineName = () => `${cpus()[0].model.trim()}, ${cpus().length} cores, ${type()}, Node ${process.versions.node}`;

/**
 * The rows at `file`, none where there is no file.
 * @param conditions what a row depends on: model, tokens, context and so on; rows of other conditions are not comparable
 * @throws Error where the file was measured under other conditions, or on another machine
 */
export function openRows(file, conditions) {
  const about = { ...conditions, machine: machineName() };
  const held = file !== undefined && existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : { ...about, rows: [] };
  for (const [field, value] of Object.entries(about)) {
    if (JSON.stringify(held[field]) === JSON.stringify(value)) continue;
    throw new Error(`${file} was measured with ${field} ${JSON.stringify(held[field])}, not ${JSON.stringify(value)}: take another file`);
  }
  return {
    rows: held.rows,
    has: (name) => held.rows.some((row) => row.name === name),
    add(row) {
      held.rows.push({ ...row, date: new Date().toISOString().slice(0, 10) });
      if (file === undefined) return;
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, `${JSON.stringify(held, undefined, 2)}\n`);
    },
  };
}
