import { FormatError, type Json } from '@niwaki/tensor';
import * as v from 'valibot';

const jsonObject = v.pipe(
  v.unknown(),
  v.check((value) => typeof value === 'object' && value !== null && !Array.isArray(value), 'expected an object'),
);

export type JsonObject = { readonly [key: string]: Json };

/** Bytes of a JSON file, strict UTF-8 (a byte order mark is dropped). Throws FormatError naming the file. */
export function parseJson(bytes: Uint8Array, file: string): Json {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as Json;
  } catch (cause) {
    throw new FormatError(`${file} is not JSON: ${(cause as Error).message}`, { file, cause });
  }
}

/** The same, which must be an object. */
export const parseJsonObject = (bytes: Uint8Array, file: string): JsonObject =>
  validate(jsonObject, parseJson(bytes, file), file) as JsonObject;

/** Checks untrusted JSON against a schema; FormatError says which field, what was expected and what came. */
export function validate<S extends v.GenericSchema>(schema: S, value: unknown, what: string): v.InferOutput<S> {
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  const faults = result.issues.map((issue) => {
    const path = v.getDotPath(issue);
    return `${path === null ? '' : `${path}: `}${issue.message}`;
  });
  throw new FormatError(`${what}: ${faults.join('; ')}`, { what, faults });
}
