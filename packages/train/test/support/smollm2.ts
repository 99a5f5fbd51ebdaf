/** SmolLM2-135M-Instruct as a GGUF file, and what Python's transformers and PEFT compute with its weights widened to f32. */
import { forward, type Model } from '@niwaki/nn';
import { add, denseParameter, exp, log, max, sub, sum, tensor2d, tidy, type Parameter } from '@niwaki/tensor';
import { denseWeight } from '@niwaki/weights';
import { hasShared, modelPath, sharedBytes, sharedJson, sharedPath } from '../../../testing/src/shared.ts';

export const file: string | undefined = modelPath('smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf');
export const missing: boolean = !hasShared || file === undefined;
const folder = 'models/smollm2-135m-instruct';

/** Eight steps of AdamW on a LoRA of all linear maps. */
export interface Trace {
  readonly rank: number;
  readonly alpha: number;
  readonly lr: number;
  readonly weight_decay: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  /** [step][row][token] */
  readonly batches: readonly (readonly (readonly number[])[])[];
  readonly losses: readonly number[];
  readonly grad_norms: readonly number[];
  /** [row][position], of the first batch after the last step */
  readonly final_batch0_logsumexp: readonly (readonly number[])[];
}

export const trace = (): Trace => sharedJson(`${folder}/lora_trace.json`);
/** The adapter before the first step, or after the last. */
export const adapterAt = (when: 'init' | 'final'): string => sharedPath(`${folder}/lora_${when}`);
export const runningText = (): string => new TextDecoder().decode(sharedBytes(`${folder}/text.txt`));
export const textPath = (): string => sharedPath(`${folder}/text.txt`);

export interface Chat {
  readonly messages: readonly { role: string; content: string }[];
  readonly ids: readonly number[];
  readonly greedy: readonly number[];
  readonly greedy_text: string;
}
export const chats = (): readonly Chat[] => sharedJson<{ chat: Chat[] }>(`${folder}/reference.json`).chat;

/** log Σ exp of every row of logits, [batch · time]. */
export async function logSumExps(model: Model, rows: readonly (readonly number[])[]): Promise<Float32Array> {
  const sums = tidy(() => {
    const tokenIds = tensor2d(
      rows.map((row) => [...row]),
      undefined,
      'int32',
    );
    const logits = forward(model, { tokenIds });
    const peaks = max(logits, -1, true);
    return add(log(sum(exp(sub(logits, peaks)), -1, true)), peaks);
  });
  const values = (await sums.data()) as Float32Array;
  sums.dispose();
  return values;
}

/** Holds every matrix as f32, 4 bytes an entry, as the reference does. */
export function holdAsFloats(model: Model): void {
  const packed = model.sites((site) => site.weight !== undefined && site.weight.kind !== 'dense' && site.tiedTo === undefined);
  for (const { path, weight } of packed) {
    model.replace(path, denseWeight(denseParameter(`${path}.weight`, weight!.dense(), { role: 'matrix', trainable: false })));
  }
}

/** Everything the model holds but the adapter. */
export const baseOf = (model: Model): Parameter[] => {
  const own = new Set(
    [...model.adapters.values()].flatMap((set) => [...set.sites.values()].flatMap(({ parameters }) => Object.values(parameters))),
  );
  return [...model.parameters().values()].filter((parameter) => !own.has(parameter));
};

/** The largest difference between numbers at the same places. */
export const distance = (given: ArrayLike<number>, expected: ArrayLike<number>): number =>
  Array.from(expected).reduce((most, value, i) => Math.max(most, Math.abs(value - given[i]!)), 0);

/** A measured number, for whoever reads the run. */
export const tell = (text: string): void => void process.stderr.write(`${text}\n`);
export const inMb = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
