import { FormatError } from '@niwaki/tensor';

/** What the architecture of a GGUF file is called in Hugging Face, and how its rows lie. */
export interface GgufFamily {
  readonly architecture: string;
  readonly modelType: string;
  readonly architectureClass: string;
  /** Rows of q and k are interleaved (x0, x_d/2, x1, …) for llama.cpp's rotation of neighbors. */
  readonly permuted: boolean;
}

const families: readonly GgufFamily[] = [
  { architecture: 'llama', modelType: 'llama', architectureClass: 'LlamaForCausalLM', permuted: true },
  { architecture: 'qwen2', modelType: 'qwen2', architectureClass: 'Qwen2ForCausalLM', permuted: false },
  { architecture: 'qwen3', modelType: 'qwen3', architectureClass: 'Qwen3ForCausalLM', permuted: false },
];

/** Mistral and SmolLM files say `llama`. */
export function ggufFamily(architecture: unknown, file: string): GgufFamily {
  const family = families.find((known) => known.architecture === architecture);
  if (family !== undefined) return family;
  throw new FormatError(`${file}: the architecture ${JSON.stringify(architecture)} is not read from GGUF`, {
    file,
    architecture,
    known: families.map((known) => known.architecture),
    help: `Known: ${families.map((known) => known.architecture).join(', ')}. Other families load from safetensors.`,
  });
}
