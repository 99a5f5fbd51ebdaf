import { checkOptions, DataError } from '@niwaki/tensor';
import * as v from 'valibot';

export interface Message {
  readonly role: string;
  readonly content: string;
}

/** What one line of a data file says, before any tokenizer saw it. `line` counts from 1. */
export type Document = (
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | { readonly messages: readonly Message[] }
) & {
  readonly line?: number;
};

const message = v.object({ role: v.pipe(v.string(), v.nonEmpty('role must not be empty')), content: v.string() });
const forms = {
  messages: v.object({ messages: v.pipe(v.array(message), v.minLength(1, 'messages must not be empty')) }),
  completion: v.object({ prompt: v.string(), completion: v.pipe(v.string(), v.nonEmpty('completion must not be empty')) }),
  text: v.object({ text: v.pipe(v.string(), v.nonEmpty('text must not be empty')) }),
} as const;

const shapesWanted = 'Each line holds {"text"}, {"prompt", "completion"} or {"messages": [{"role", "content"}]}.';

/**
 * Documents of a JSONL text, one a line; blank lines are skipped, other fields ignored.
 * A line with several forms counts as the first of: messages, prompt and completion, text.
 * @param options `name` stands for the file in errors
 * @throws DataError listing every malformed line (the first ten in words), or when there is no document
 */
export function parseJsonl(text: string, options: { name?: string } = {}): Document[] {
  checkOptions('parseJsonl', options, ['name']);
  const { name = 'data' } = options;
  const documents: Document[] = [];
  const problems: { line: number; problem: string }[] = [];
  // A byte-order mark is no part of the first line.
  const lines = text.replace(/^\uFEFF/, '').split('\n');
  for (const [index, content] of lines.entries()) {
    if (content.trim() === '') continue;
    const line = index + 1;
    const parsed = parseLine(content);
    if (typeof parsed === 'string') problems.push({ line, problem: parsed });
    else documents.push({ ...parsed, line });
  }
  if (problems.length > 0) {
    const shown = problems.slice(0, 10).map(({ line, problem }) => `line ${line}: ${problem}`);
    const more = problems.length > shown.length ? `\n  and ${problems.length - shown.length} more lines` : '';
    throw new DataError(
      `${name} has ${problems.length} malformed line${problems.length === 1 ? '' : 's'}:\n  ${shown.join('\n  ')}${more}`,
      {
        lines: problems.map((problem) => problem.line),
        help: shapesWanted,
      },
    );
  }
  return documentsOf(documents, name, shapesWanted);
}

function parseLine(content: string): Exclude<Document, { line: number }> | string {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    return `not JSON (${(cause as Error).message})`;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return `expected an object, got ${kindOf(value)}`;
  const form = 'messages' in value ? 'messages' : 'prompt' in value || 'completion' in value ? 'completion' : 'text';
  const result = v.safeParse<v.GenericSchema<unknown, Document>>(forms[form], value);
  if (result.success) return result.output;
  if (form === 'text' && !('text' in value)) return `no known field among: ${Object.keys(value).join(', ') || '(none)'}`;
  const issue = result.issues[0];
  return `${v.getDotPath(issue) ?? form}: ${issue.message}`;
}

const kindOf = (value: unknown): string => (value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`);

/**
 * Documents of a plain text: the whole text as one, or one per paragraph.
 * @param options `split` 'whole' (default) or 'blank-line'
 */
export function parseText(text: string, options: { split?: 'whole' | 'blank-line'; name?: string } = {}): Document[] {
  checkOptions('parseText', options, ['split', 'name']);
  const { split = 'whole', name = 'data' } = options;
  const clean = text.replace(/^\uFEFF/, '');
  const parts = split === 'whole' ? [clean] : clean.split(/\r?\n[ \t]*(?:\r?\n[ \t]*)+/);
  return documentsOf(
    parts.filter((part) => part.trim() !== '').map((part) => ({ text: part })),
    name,
    'The text is empty, or blank from end to end.',
  );
}

function documentsOf(documents: Document[], name: string, help: string): Document[] {
  if (documents.length > 0) return documents;
  throw new DataError(`${name} holds no document`, { name, help });
}

/** Documents of a file by its name: `.jsonl` and `.ndjson` are JSONL, anything else is plain text. */
export function parseDocuments(text: string, options: { name: string; split?: 'whole' | 'blank-line' }): Document[] {
  checkOptions('parseDocuments', options, ['name', 'split']);
  const { name, split = 'whole' } = options;
  return /\.(jsonl|ndjson)$/i.test(name) ? parseJsonl(text, { name }) : parseText(text, { split, name });
}
