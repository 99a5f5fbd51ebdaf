import { NiwakiError } from '@niwaki/tensor';

/** The command was called in a way that cannot be: exit code 2. Everything else that goes wrong is 1. */
export class UsageError extends NiwakiError {}

/** What a failure says: its first line for people, its parts for programs. */
export function describeFailure(error: unknown): { text: string; json: { name: string; message: string; help?: string } } {
  if (!(error instanceof Error)) return { text: String(error), json: { name: 'Error', message: String(error) } };
  if (!NiwakiError.isInstance(error)) return { text: error.message, json: { name: error.name, message: error.message } };
  const [message] = error.message.split('\n  help: ') as [string];
  return { text: error.message, json: { name: error.name, message, ...(error.help === undefined ? {} : { help: error.help }) } };
}
