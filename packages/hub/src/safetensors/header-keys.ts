/**
 * The first key written twice in the outermost object of a JSON text, or undefined. `JSON.parse` keeps the last value
 * without a word, which hides a tensor from a reader and shows it to another. The text must be valid JSON.
 */
export function repeatedKey(json: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  let expectsKey = false;
  for (let i = 0; i < json.length; i++) {
    const c = json.charCodeAt(i);
    if (c === quote) {
      const end = stringEnd(json, i);
      if (depth === 1 && expectsKey) {
        const raw = json.slice(i, end + 1);
        const key = raw.includes('\\') ? (JSON.parse(raw) as string) : raw.slice(1, -1);
        if (seen.has(key)) return key;
        seen.add(key);
        expectsKey = false;
      }
      i = end;
    } else if (c === openBrace || c === openBracket) {
      depth++;
      if (depth === 1) expectsKey = true;
    } else if (c === closeBrace || c === closeBracket) depth--;
    else if (c === comma && depth === 1) expectsKey = true;
  }
  return undefined;
}

const [quote, backslash, comma] = [34, 92, 44];
const [openBracket, closeBracket, openBrace, closeBrace] = [91, 93, 123, 125];

function stringEnd(json: string, start: number): number {
  let i = start + 1;
  while (json.charCodeAt(i) !== quote) i += json.charCodeAt(i) === backslash ? 2 : 1;
  return i;
}
