import { checkOptions, DataError } from '@niwaki/tensor';

/**
 * The bytes of a UTF-8 file as text; a byte-order mark stays. What is no UTF-8 would else become U+FFFD without a word, and
 * be learned.
 * @param options `name` stands for the file in errors
 * @throws DataError that names the file, and line and byte of the first sequence that is none
 * @example const documents = parseDocuments(decodeText(new Uint8Array(await file.arrayBuffer()), file), file);
 */
export function decodeText(bytes: Uint8Array, options: { name?: string } = {}): string {
  checkOptions('decodeText', options, ['name']);
  const { name = 'data' } = options;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    const offset = firstBad(bytes);
    const line = bytes.subarray(0, offset).reduce((count, byte) => count + (byte === 10 ? 1 : 0), 1);
    const byte = `0x${bytes[offset]!.toString(16).padStart(2, '0')}`;
    throw new DataError(`${name} is no UTF-8 text: byte ${offset} (${byte}, line ${line})`, {
      name,
      offset,
      line,
      cause,
      help: 'Write the file in UTF-8, for example by iconv -f latin1 -t utf-8.',
    });
  }
}

/** Where the first sequence begins that stands for no character: the first U+FFFD that the bytes do not spell out themselves. */
function firstBad(bytes: Uint8Array): number {
  let at = 0;
  for (const character of new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)) {
    const spelled = bytes[at] === 0xef && bytes[at + 1] === 0xbf && bytes[at + 2] === 0xbd;
    if (character === '\uFFFD' && !spelled) return at;
    at += bytesOf(character.codePointAt(0)!);
  }
  return at;
}

const bytesOf = (point: number): number => (point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x1_0000 ? 3 : 4);
