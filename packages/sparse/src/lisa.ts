import { checkCount, ConfigError, distinctNumbers, matchesPath, type Noise, type Parameter } from '@niwaki/tensor';
import type { Model, Stage } from '@niwaki/nn';
import type { Participant } from '@niwaki/engine';

export interface LisaOptions {
  /** Blocks that train at a time; default 2. */
  readonly active?: number;
  /** Steps from one draw to the next; default 20. */
  readonly every?: number;
  /** Pattern of the blocks' paths; default the decoder's layers. */
  readonly blocks?: string;
}

/**
 * LISA (Pan et al. 2024, 2403.17919): of the blocks a few drawn ones train at a time; embeddings, final norm and head
 * always do. For `train({ …, participants: [lisa()] })`, with all parameters trainable. Gradients and optimizer state
 * exist for what trains; a block's state is freed when it leaves, and begins anew, bias correction included, when it is
 * drawn again. The draw is a function of seed and step, so nothing needs to be saved.
 * Memory: 4 bytes of gradient and the optimizer's state (AdamW: 8) an entry of the active blocks and the ends.
 * @throws ConfigError where there are no such blocks, fewer than `active`, or some that do not train
 */
export function lisa({ active = 2, every = 20, blocks = '**.layers.*' }: LisaOptions = {}): Participant {
  for (const [name, value] of Object.entries({ active, every })) checkCount('lisa', name, value);
  return {
    name: `lisa ${active} of ${blocks} every ${every}`,
    begin: ({ model, attempt, draw, parameters }) => {
      const list = blocksOf(model, blocks, active);
      const own = list.map((stage) => trainedIn(stage, parameters));
      const address = { ...draw.at('blocks#lisa'), step: Math.floor(attempt / every) * every };
      const drawn = new Set(drawBlocks(list.length, active, address));
      const inactive = new Set(own.flatMap((set, i) => (drawn.has(i) ? [] : set)));
      return new Set(parameters.filter((parameter) => !inactive.has(parameter)));
    },
  };
}

/** Indices of the blocks that train, ascending: `active` of `count`, each as likely as the others. */
export const drawBlocks = (count: number, active: number, address: Noise): readonly number[] => [
  ...distinctNumbers(count, active, address),
];

function blocksOf(model: Model, pattern: string, active: number): readonly Stage[] {
  const stages = model.stages();
  const found = stages.filter(({ path }) => matchesPath(pattern, path));
  if (found.length >= active) return found;
  throw new ConfigError(
    found.length === 0
      ? `lisa: no block of the model is named '${pattern}'`
      : `lisa: ${active} blocks shall train at a time, '${pattern}' names ${found.length}`,
    { pattern, active, stages: stages.map(({ path }) => path), help: 'Give `blocks`, a pattern of the stages that take turns.' },
  );
}

function trainedIn(stage: Stage, parameters: readonly Parameter[]): readonly Parameter[] {
  const own = new Set(stage.parameters());
  const trained = parameters.filter((parameter) => own.has(parameter));
  if (trained.length > 0) return trained;
  throw new ConfigError(`lisa: '${stage.path}' has nothing that trains, and its turn will come`, {
    path: stage.path,
    help: 'Set `trainable` on its parameters; a quantized block needs an adapter.',
  });
}
