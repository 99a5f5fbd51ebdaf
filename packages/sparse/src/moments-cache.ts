import { factorMoments, type FactoredMoments, type Tensor2D } from '@niwaki/tensor';

/** `factorMoments` of statistics on the device, once for all sites that read one input. */
export function momentsCache(options: {
  readonly damping: number;
  readonly breath: () => Promise<void>;
}): (gram: Tensor2D) => Promise<FactoredMoments> {
  const known = new WeakMap<Tensor2D, Promise<FactoredMoments>>();
  return (gram) => {
    const found = known.get(gram) ?? gram.data().then((values) => factorMoments(values, gram.shape[0], options));
    known.set(gram, found);
    return found;
  };
}
