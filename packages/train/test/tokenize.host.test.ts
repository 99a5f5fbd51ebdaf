import { ConfigError, DataError } from '@niwaki/tensor';
import { byteSpecials, byteTokenizer, chatMl } from '@niwaki/testing';
import { describe, expect, it } from 'vitest';
import { tokenizeDocuments, type Document, type Sample } from '../src/index.ts';

const { bos, imEnd, imStart } = byteSpecials;
const one = (document: Document, tokenizer = byteTokenizer()): Sample => tokenizeDocuments([document], tokenizer)[0]!;
const bytes = (text: string): number[] => [...new TextEncoder().encode(text)];
const learned = ({ ids, learn }: Sample): number[] => [...ids].filter((_, i) => learn[i] === 1);

describe('a text', () => {
  it('ends with the end of text, and all of it but the first token is learned', () => {
    const sample = one({ text: 'abc' });
    expect([...sample.ids]).toEqual([...bytes('abc'), imEnd]);
    expect([...sample.learn]).toEqual([0, 1, 1, 1]);
  });

  it('has one BOS where the tokenizer writes one', () => {
    expect([...one({ text: 'ab' }, byteTokenizer({ addsBos: true, chatTemplate: '' })).ids]).toEqual([bos, ...bytes('ab'), imEnd]);
  });

  it('that spells a special token stays text', () => {
    expect(learned(one({ text: 'a<|im_end|>b' }))).toEqual([...bytes('<|im_end|>b'), imEnd]);
  });
});

describe('a prompt and its completion', () => {
  it('learns the completion and the end of text', () => {
    const sample = one({ prompt: 'Q: ', completion: 'yes' });
    expect([...sample.ids]).toEqual([...bytes('Q: yes'), imEnd]);
    expect(learned(sample)).toEqual([...bytes('yes'), imEnd]);
  });

  it('keeps the prompt ids that generation starts from', () => {
    const tokenizer = byteTokenizer({ addsBos: true, chatTemplate: '' });
    const prompt = tokenizer.encode('Q: ');
    expect([...one({ prompt: 'Q: ', completion: 'yes' }, tokenizer).ids].slice(0, prompt.length)).toEqual(prompt);
  });
});

describe('a chat', () => {
  const messages = [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'yo' },
    { role: 'user', content: 'so' },
    { role: 'assistant', content: 'ok' },
  ];

  it('learns what the assistant says and the token that ends its turn, nothing else', () => {
    expect(learned(one({ messages }))).toEqual([...bytes('yo'), imEnd, ...bytes('ok'), imEnd]);
  });

  it('has the ids that generation sees, up to the answer', () => {
    const tokenizer = byteTokenizer();
    const sample = one({ messages }, tokenizer);
    const prompt = tokenizer.encodeChat(messages.slice(0, 3), { addGenerationPrompt: true });
    expect([...sample.ids].slice(0, prompt.length)).toEqual(prompt);
    expect([...sample.ids].slice(0, 1)).toEqual([imStart]);
  });

  it('of a person who spells a special token holds no such token', () => {
    const tokenizer = byteTokenizer();
    const sample = one({ messages: [{ role: 'user', content: '<|im_end|>' }, messages[1]!] }, tokenizer);
    expect([...sample.ids].filter((id) => id === imEnd)).toHaveLength(2);
    const open = tokenizeDocuments([{ messages: [{ role: 'user', content: '<|im_end|>' }, messages[1]!] }], tokenizer, {
      allowSpecial: true,
    })[0]!;
    expect([...open.ids].filter((id) => id === imEnd)).toHaveLength(3);
  });

  it.each([
    ['the template', `{{ bos_token }}${chatMl}`, false],
    ['the tokenizer', chatMl, true],
    ['both', `{{ bos_token }}${chatMl}`, true],
  ])('has exactly one BOS where %s writes it, in training as in generation', (_who, chatTemplate, addsBos) => {
    const tokenizer = byteTokenizer({ chatTemplate, addsBos });
    const sample = one({ messages }, tokenizer);
    const prompt = tokenizer.encodeChat(messages.slice(0, 1), { addGenerationPrompt: true });
    for (const ids of [[...sample.ids], prompt, [...one({ text: 'a' }, tokenizer).ids]])
      expect(ids.filter((id) => id === bos)).toEqual([bos]);
    expect(sample.ids[0]).toBe(bos);
    expect([...sample.ids].slice(0, prompt.length)).toEqual(prompt);
  });

  it('ends with the end of text where the template writes none', () => {
    const bare =
      "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    const sample = one({ messages }, byteTokenizer({ chatTemplate: bare }));
    expect(learned(sample)).toEqual([...bytes('yo\nok\n'), imEnd]);
  });

  it('is refused with its line where the template rewrites earlier turns', () => {
    const forgetful =
      "{% for m in messages %}{{ m.role + ':' }}{% if loop.last %}{{ m.content }}{% endif %}{{ ';' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    const tokenizer = byteTokenizer({ chatTemplate: forgetful });
    expect(() => one({ messages, line: 7 }, tokenizer)).toThrow(DataError);
    expect(() => one({ messages, line: 7 }, tokenizer)).toThrow(/line 7: .*turn 2/);
  });

  it('without an answer learns nothing', () => {
    expect(learned(one({ messages: messages.slice(0, 1) }))).toEqual([]);
  });
});

it('says that a model came without a tokenizer', () => {
  expect(() => tokenizeDocuments([{ text: 'a' }], undefined)).toThrow(ConfigError);
});
