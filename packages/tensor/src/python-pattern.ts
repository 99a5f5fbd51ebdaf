import { FormatError } from './errors.ts';

/**
 * A Python regular expression as ours, matched against the whole text (`re.fullmatch`): PEFT files store target modules
 * that way. What means the same in both is kept, what only differs in spelling is translated, and what Python alone has
 * is refused by name, since a pattern that silently matched other modules would be worse.
 */
export const pythonFullMatch = (source: string): RegExp => compile(source, `^(?:${translate(source)})$`);

/**
 * PEFT's rule for the keys of `rank_pattern` and `alpha_pattern`: the key, a Python regular expression, matches the path
 * or what follows one of its dots; `^` in the key ties it to the start. The first key in file order that matches wins.
 */
export const matchesSuffixPattern = (key: string, path: string): boolean => compile(key, `^(?:.*\\.)?(?:${translate(key)})$`).test(path);

function compile(source: string, translated: string): RegExp {
  try {
    return new RegExp(translated);
  } catch (cause) {
    throw new FormatError(`'${source}' is not a regular expression`, { pattern: source, cause, help: 'Correct the pattern in the file.' });
  }
}

const sameEscapes = /^[dDwWsSbBnrtfv1-9]$/;

function translate(source: string): string {
  let out = '';
  for (let i = 0; i < source.length;) {
    const [text, read] = piece(source, i);
    out += text;
    i += read;
  }
  return out;
}

/** Translation of the piece that starts at `i`, and how many characters it takes. */
function piece(source: string, i: number): [text: string, read: number] {
  const rest = source.slice(i);
  if (rest[0] === '\\') return escape(source, rest);
  if (rest[0] === '[') return characterClass(source, rest);
  if (rest.startsWith('(?')) return group(source, rest);
  const upTo = /^\{,(\d+)\}/.exec(rest);
  if (upTo !== null) return [`{0,${upTo[1]}}`, upTo[0].length];
  const quantifier = /^(?:[*+?]|\{\d+(?:,\d*)?\})/.exec(rest);
  if (quantifier === null) return [rest[0]!, 1];
  const length = quantifier[0].length;
  if (rest[length] === '+') throw pythonOnly(source, `the possessive quantifier '${rest.slice(0, length + 1)}'`);
  // The lazy mark belongs to its quantifier: `*?` followed by `+` is an error in both languages, not a possessive one.
  return rest[length] === '?' ? [`${quantifier[0]}?`, length + 1] : [quantifier[0], length];
}

function escape(source: string, rest: string): [string, number] {
  const letter = rest[1];
  if (letter === undefined) throw new FormatError(`'${source}' ends in a lone backslash`, { pattern: source });
  if (letter === 'A') return ['^', 2];
  if (letter === 'Z') return ['$', 2];
  const code = /^\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4})/.exec(rest);
  if (code !== null) return [code[0], code[0].length];
  if (/[a-zA-Z0-9]/.test(letter) && !sameEscapes.test(letter)) throw pythonOnly(source, `the escape '\\${letter}'`);
  return [rest.slice(0, 2), 2];
}

function characterClass(source: string, rest: string): [string, number] {
  const head = rest.startsWith('[^') ? '[^' : '[';
  let out = head;
  let i = head.length;
  // A bracket that comes first is a member in Python and ends the class here.
  if (rest[i] === ']') {
    out += '\\]';
    i++;
  }
  while (i < rest.length && rest[i] !== ']') {
    const [text, read] = rest[i] === '\\' ? classEscape(source, rest.slice(i)) : [rest[i]!, 1];
    out += text;
    i += read;
  }
  if (i >= rest.length) throw new FormatError(`'${source}' has a character class without an end`, { pattern: source });
  return [`${out}]`, i + 1];
}

function classEscape(source: string, rest: string): [string, number] {
  if (/^\\[AZB1-9]/.test(rest)) throw pythonOnly(source, `'${rest.slice(0, 2)}' inside a character class`);
  return escape(source, rest);
}

const sameGroups = /^\(\?(?::|=|!|<=|<!)/;

function group(source: string, rest: string): [string, number] {
  const same = sameGroups.exec(rest);
  if (same !== null) return [same[0], same[0].length];
  const named = /^\(\?P<([A-Za-z_]\w*)>/.exec(rest);
  if (named !== null) return [`(?<${named[1]}>`, named[0].length];
  const reference = /^\(\?P=([A-Za-z_]\w*)\)/.exec(rest);
  if (reference !== null) return [`\\k<${reference[1]}>`, reference[0].length];
  const comment = /^\(\?#[^)]*\)/.exec(rest);
  if (comment !== null) return ['', comment[0].length];
  throw pythonOnly(source, `the group '${rest.slice(0, 4)}…'`);
}

const pythonOnly = (source: string, what: string): FormatError =>
  new FormatError(`the pattern '${source}' uses ${what}, which only Python has`, {
    pattern: source,
    construct: what,
    help: 'Write the pattern without it, or list the modules by name.',
  });
