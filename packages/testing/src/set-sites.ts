import type { AdapterSet, Model, Point, Site } from '@niwaki/nn';

const points: readonly Point[] = ['linear', 'conv', 'embedding', 'norm', 'attention', 'ffn', 'sublayer', 'block', 'head'];

/** Where a set has adapters, modules included, in the model's order. */
export const sitesOf = (model: Model, set: AdapterSet): readonly Site[] => model.sites(({ path }) => set.sites.has(path), { points });

/** [out, in] of a site; a module takes and gives rows of the model's width. */
export const shapeAt = ({ info: { hiddenSize } }: Model, { weight }: Site): readonly [number, number] =>
  weight?.shape ?? [hiddenSize, hiddenSize];

/** Whether what a set does shows in no site's output alone: rows in front of the tokens, stages, other parameters of a module. */
export const extendsGraph = ({ sites }: AdapterSet): boolean =>
  [...sites.values()].some((adapter) =>
    [adapter.prompt, adapter.prefix, adapter.stages, adapter.replaces].some((member) => member !== undefined),
  );
