import { memorySink, type FolderSink } from '@niwaki/hub';
import type { RunFolder } from '../checkpoint/run-folder.ts';

/** Files go to the folder as they come, where it takes them so; else they are collected in memory and written whole. */
export const sinkInto = (folder: RunFolder): FolderSink => ({
  name: folder.name,
  create: async (file) => {
    if (folder.sink !== undefined) return folder.sink(file);
    const sink = memorySink({ name: file });
    return { ...sink, commit: () => folder.write(file, sink.bytes()) };
  },
  remove: (file) => folder.remove(file),
});
