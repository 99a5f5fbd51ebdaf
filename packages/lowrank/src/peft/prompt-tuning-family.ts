import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import { promptTuning, type PromptTuningOptions } from '../prompt-tuning.ts';
import { commonDefaults, commonFields, keptFields, refuseFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const own = {
  peft_type: v.string(),
  num_virtual_tokens: count,
  num_transformer_submodules: v.nullish(v.literal(1)),
  modules_to_save: v.nullish(v.null()),
};
const fileFields = { ...commonFields, token_dim: v.nullish(count), num_attention_heads: v.nullish(count), num_layers: v.nullish(count) };

/** How Python started the rows, which a file holds as they became. */
const startFields = {
  prompt_tuning_init: v.nullish(v.picklist(['RANDOM', 'TEXT', 'SAMPLE_VOCAB'])),
  prompt_tuning_init_text: v.nullish(v.string()),
  tokenizer_name_or_path: v.nullish(v.string()),
  tokenizer_kwargs: v.nullish(v.record(v.string(), v.unknown())),
};

/** Of the network that Python trained the rows through; a file holds what came out. */
const encoderFields = {
  encoder_dropout: v.nullish(v.number()),
  encoder_hidden_size: v.nullish(count),
  encoder_num_layers: v.nullish(count),
  encoder_reparameterization_type: v.nullish(v.picklist(['MLP', 'LSTM'])),
};

interface Kind {
  readonly peftType: string;
  readonly fields: v.ObjectEntries;
  /** What Python writes for those that a set from here does not have. */
  defaults(options: Required<PromptTuningOptions>): { readonly [field: string]: Json };
}

const promptFamily = ({ peftType, fields, defaults }: Kind): PeftFamily => {
  const kept = { ...fileFields, ...fields };
  const schema = v.looseObject({ ...own, ...kept });
  return {
    peftType,
    read: (json, model, warn) => {
      refuseFields(json, ['modules_to_save']);
      const config = validate(schema, json, 'adapter_config.json');
      warnUnknown(json, Object.keys(schema.entries), warn);
      const sites = model.sites(() => true, { points: ['embedding'] });
      return {
        method: { ...promptTuning({ virtualTokens: config['num_virtual_tokens'] as number }), peftType },
        targets: sites.map(({ path }) => path),
        fields: keptFields(json, Object.keys(kept)),
        statesRank: false,
      };
    },
    write: ({ method, fields: given, base }) => {
      const options = method.options as unknown as Required<PromptTuningOptions>;
      return {
        ...commonDefaults,
        base_model_name_or_path: base,
        peft_type: peftType,
        modules_to_save: null,
        num_virtual_tokens: options.virtualTokens,
        num_transformer_submodules: 1,
        ...defaults(options),
        ...(given as { readonly [field: string]: Json }),
        // Python decides by it which class reads the file.
        task_type: (given['task_type'] ?? 'CAUSAL_LM') as Json,
      };
    },
  };
};

/** `peft_type: PROMPT_TUNING`. */
export const promptTuningFamily: PeftFamily = promptFamily({
  peftType: 'PROMPT_TUNING',
  fields: startFields,
  defaults: ({ init }) => ({
    // Rows of chosen tokens are RANDOM to Python: TEXT asks for the text and its tokenizer.
    prompt_tuning_init: init === 'vocabulary' ? 'SAMPLE_VOCAB' : 'RANDOM',
    prompt_tuning_init_text: null,
    tokenizer_name_or_path: null,
    tokenizer_kwargs: null,
  }),
});

/** `peft_type: P_TUNING` (Liu et al. 2021): read, applied, trained on and written as the rows its encoder gave. */
export const pTuningFamily: PeftFamily = promptFamily({ peftType: 'P_TUNING', fields: encoderFields, defaults: () => ({}) });
