import { Template } from '@huggingface/jinja';
import { ConfigError, DataError, FormatError } from '@niwaki/tensor';
import type { ChatMessage } from './tokenizer.ts';

export type RenderChat = (messages: readonly ChatMessage[], variables: Readonly<Record<string, unknown>>) => string;

/**
 * A Jinja chat template, parsed at the first use. Rendering throws DataError with what the template says where it refuses
 * a conversation (roles out of order), FormatError where it is no template.
 */
export function chatRenderer(source: string | undefined): RenderChat {
  let template: Template | undefined;
  return (messages, variables) => {
    if (source === undefined) {
      throw new ConfigError('the model has no chat template', { help: 'Encode plain text, or use an instruction-tuned model.' });
    }
    try {
      template ??= new Template(source);
    } catch (cause) {
      throw new FormatError(`the chat template cannot be parsed: ${String(cause)}`, { cause });
    }
    try {
      // As in Python: what was not given is none, not undefined.
      return template.render({ messages, tools: null, documents: null, ...variables });
    } catch (cause) {
      throw new DataError(`the chat template refuses these messages: ${cause instanceof Error ? cause.message : String(cause)}`, {
        cause,
        roles: messages.map(({ role }) => role),
      });
    }
  };
}
