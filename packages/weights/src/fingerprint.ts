import type { Parameter } from '@niwaki/tensor';
import type { Weight } from './weight.ts';

/**
 * SHA-256 over what these weights store, by path, as hexadecimal. Tables that a format has for itself are left out, so
 * that it is the same before and after a file. Reads everything back, part by part.
 */
export async function fingerprintOf(weights: ReadonlyMap<string, Weight>): Promise<string> {
  const lines: string[] = [];
  for (const [path, { parts }] of [...weights].sort(([a], [b]) => (a < b ? -1 : 1))) {
    for (const part of Object.values(parts).filter(isContent)) {
      const { bytes } = await part.raw();
      lines.push(`${path} ${part.role} ${await sha256(bytes)}`);
    }
  }
  return sha256(new TextEncoder().encode(lines.join('\n')));
}

const isContent = ({ role }: Parameter): boolean => role !== 'statistic';

async function sha256(bytes: Uint8Array): Promise<string> {
  const digest = await globalThis.crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
