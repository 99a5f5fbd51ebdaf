import {
  checkCount,
  checkOneOf,
  checkOptions,
  ConfigError,
  distinctNumbers,
  matchesPath,
  type Noise,
  type Parameter,
} from '@niwaki/tensor';
import type { Model, Stage } from '@niwaki/nn';
import type { IdleState, Participant } from '@niwaki/engine';

export interface LisaOptions {
  /** Blocks that train at a time; default 2. */
  readonly active?: number;
  /** Steps from one draw to the next; default 20. */
  readonly every?: number;
  /** Pattern of the blocks' paths; default the decoder's layers. */
  readonly blocks?: string;
  /**
   * Optimizer state of a block that is not drawn. 'drop' (default): freed, and begins anew, bias correction included. 'keep':
   * stays on the device with its own count of updates. 'offload': the same bit for bit, but in host memory meanwhile.
   */
  readonly state?: IdleState;
}

/**
 * LISA (Pan et al. 2024, 2403.17919): of the blocks a few drawn ones train at a time; embeddings, final norm and head
 * always do. For `train({ …, participants: [lisa()] })`, with all parameters trainable. The draw is a function of seed and
 * step, so nothing of it needs to be saved; a run that kept its states goes on with offloaded ones, and the other way round.
 * Memory: 4 bytes of gradient and the optimizer's state (AdamW: 8) an entry of the active blocks and the ends. 'keep' adds the
 * state of every block that was drawn before: in the end, that of full training. 'offload' adds it to the host's memory.
 * @throws ConfigError where there are no such blocks, fewer than `active`, or some that do not train or are quantized
 */
export function lisa(options: LisaOptions = {}): Participant {
  checkOptions('lisa', options, ['active', 'every', 'blocks', 'state']);
  const { active = 2, every = 20, blocks = '**.layers.*', state = 'drop' } = options;
  for (const [name, value] of Object.entries({ active, every })) checkCount('lisa', name, value);
  checkOneOf('lisa', 'state', state, ['drop', 'keep', 'offload'] satisfies IdleState[]);
  return {
    // Where a kept state waits makes no difference to the numbers.
    name: `lisa ${active} of ${blocks} every ${every}${state === 'drop' ? '' : ', states kept'}`,
    idleState: state,
    begin: ({ model, attempt, draw, parameters }) => {
      const list = blocksOf(model, blocks, active);
      const adapters = new Set(
        [...model.adapters.values()].flatMap(({ sites }) => [...sites.values()]).flatMap((adapter) => Object.values(adapter.parameters)),
      );
      const own = list.map((stage) => trainedIn(stage, parameters, adapters));
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
      ? `lisa: cannot find the blocks: no stage of the model is named '${pattern}'`
      : `lisa: ${active} blocks shall train at a time, '${pattern}' names ${found.length}`,
    { pattern, active, stages: stages.map(({ path }) => path), help: 'Give `blocks`, a pattern of the stages that take turns.' },
  );
}

function trainedIn(stage: Stage, parameters: readonly Parameter[], adapters: ReadonlySet<Parameter>): readonly Parameter[] {
  const own = new Set(stage.parameters());
  const trained = parameters.filter((parameter) => own.has(parameter));
  if (trained.length === 0) {
    throw new ConfigError(`lisa: '${stage.path}' has nothing that trains, and its turn will come`, {
      path: stage.path,
      help: 'Set `trainable` on its parameters; a quantized block needs an adapter.',
    });
  }
  if (!trained.some((parameter) => adapters.has(parameter))) refuseQuantized(stage, new Set(trained));
  return trained;
}

/** Without an adapter a block's turn is its matrices', and not that of the norms between them alone. */
function refuseQuantized({ path, sites }: Stage, trained: ReadonlySet<Parameter>): void {
  for (const { path: site, weight } of sites) {
    if (weight === undefined || weight.matrix !== undefined || Object.values(weight.parts).some((part) => trained.has(part))) continue;
    throw new ConfigError(`lisa: '${path}' is quantized, and its turn will come: no gradient trains the ${weight.kind} of '${site}'`, {
      path,
      site,
      weight: weight.kind,
      help: 'Train the float model, store it as int8Weights, or put an adapter on the blocks.',
    });
  }
}
