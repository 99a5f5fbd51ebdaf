/** Counts what a function puts into WebGPU's queue, by the name of the shader: a kernel may be several dispatches, or none. */
export async function dispatchesOf(run: () => Promise<void>): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  const pass = GPUComputePassEncoder.prototype;
  const { setPipeline, dispatchWorkgroups } = pass;
  let current = '';
  pass.setPipeline = function (pipeline) {
    current = pipeline.label;
    return setPipeline.call(this, pipeline);
  };
  pass.dispatchWorkgroups = function (...groups) {
    counts.set(current, (counts.get(current) ?? 0) + 1);
    return dispatchWorkgroups.apply(this, groups);
  };
  try {
    await run();
  } finally {
    Object.assign(pass, { setPipeline, dispatchWorkgroups });
  }
  return counts;
}
