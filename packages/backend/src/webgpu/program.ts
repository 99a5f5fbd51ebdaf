/** One shader: its text and what it binds, in this order: inputs, outputs, uniforms. */
export interface Program<I extends string = string, O extends string = string, U extends string = string> {
  /** Names the pipeline: everything that changes the text. */
  readonly key: string;
  readonly inputs: Readonly<Record<I, Element>>;
  readonly outputs: Readonly<Record<O, Element>>;
  readonly uniforms: Readonly<Record<U, Scalar>>;
  /** The whole module, header and entry point included. */
  code(): string;
}

export type Scalar = 'f32' | 'u32' | 'i32';
export type Element = Scalar | 'vec4<f32>' | 'vec4<i32>';

export interface ProgramSource<I extends string, O extends string, U extends string> {
  readonly key: string;
  readonly inputs: Readonly<Record<I, Element>>;
  readonly outputs: Readonly<Record<O, Element>>;
  /** Sizes and scalars. They are read as `u.name`. */
  readonly uniforms?: Readonly<Record<U, Scalar>>;
  /** Threads of a workgroup along x and y; at most 256 in all. Known to the shader as `LANES` (their product). */
  readonly workgroup: number | readonly [x: number, y: number];
  /** Whether the shader uses subgroups: then it knows `subgroup` and `subgroups`, its own among the workgroup's and how many these are. */
  readonly subgroups?: boolean;
  /** Functions and workgroup variables. */
  readonly declarations?: Text;
  /**
   * The entry point's body. In reach: `lane` (0 .. LANES - 1), `local`, `group`, `groups` (as WGSL's local_invocation_id,
   * workgroup_id, num_workgroups), `groupIndex` (the workgroup's number, x first) and `index` (groupIndex · LANES + lane).
   */
  readonly main: Text;
}

/** WGSL, or what writes it: a program is compiled once and asked for at each launch, which writing a long one holds up. */
type Text = string | (() => string);
const textOf = (text: Text): string => (typeof text === 'string' ? text : text());

/** Threads of an element-wise workgroup: of 64, a large card spends longer starting them than they run. */
export const lanes = 256;

/** Builds a program: writes its header, so that a kernel's file holds only its own mathematics. */
export function program<I extends string, O extends string, U extends string = never>(source: ProgramSource<I, O, U>): Program<I, O, U> {
  const uniforms = source.uniforms ?? ({} as Readonly<Record<U, Scalar>>);
  return { key: source.key, inputs: source.inputs, outputs: source.outputs, uniforms, code: () => write(source, uniforms) };
}

function write<I extends string, O extends string, U extends string>(
  source: ProgramSource<I, O, U>,
  uniforms: Readonly<Record<U, Scalar>>,
): string {
  const [x, y] = typeof source.workgroup === 'number' ? [source.workgroup, 1] : source.workgroup;
  const inputs = Object.entries<Element>(source.inputs);
  const outputs = Object.entries<Element>(source.outputs);
  const fields = Object.entries<Scalar>(uniforms);
  const bindings = [
    ...inputs.map(([name, type]) => `var<storage, read> ${name}: array<${type}>;`),
    ...outputs.map(([name, type]) => `var<storage, read_write> ${name}: array<${type}>;`),
    ...(fields.length === 0 ? [] : ['var<uniform> u: Uniforms;']),
  ];
  return `${source.subgroups ? 'enable subgroups;' : ''}
${fields.length === 0 ? '' : `struct Uniforms { ${fields.map(([name, type]) => `${name}: ${type}`).join(', ')} }`}
${bindings.map((text, i) => `@group(0) @binding(${i}) ${text}`).join('\n')}
const LANES = ${x * y}u;
${textOf(source.declarations ?? '')}
@compute @workgroup_size(${x}, ${y})
fn main(@builtin(local_invocation_index) lane: u32, @builtin(local_invocation_id) local: vec3<u32>,
        @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>${
          source.subgroups ? ',\n        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32' : ''
        }) {
  let groupIndex = (group.z * groups.y + group.y) * groups.x + group.x;
  let index = groupIndex * LANES + lane;
${textOf(source.main)}
}
`;
}

/** Workgroups for `count` items of `each`, folded into two dimensions where one is too short; shaders guard the overhang. */
export function fold(count: number, each = 1): [number, number] {
  const total = Math.ceil(count / each);
  if (total <= longest) return [Math.max(total, 1), 1];
  const rows = Math.ceil(total / longest);
  return [Math.ceil(total / rows), rows];
}

/** WebGPU's guaranteed number of workgroups along one dimension. */
const longest = 65535;

/**
 * A sum (or other fold) over a workgroup by halving in shared memory; every thread gets the result, and WGSL knows that it
 * is the same for all. LANES must be a power of two, the call in uniform control flow. No subgroups: their size differs between devices, and with it the order of the sum.
 */
export const reduction = (name: string, combine: string, type: Element = 'f32'): string => `
var<workgroup> ${name}Shared: array<${type}, LANES>;
fn ${name}(mine: ${type}, lane: u32) -> ${type} {
  ${name}Shared[lane] = mine;
  for (var span = LANES / 2u; span > 0u; span /= 2u) {
    workgroupBarrier();
    if (lane < span) {
      let a = ${name}Shared[lane];
      let b = ${name}Shared[lane + span];
      ${name}Shared[lane] = ${combine};
    }
  }
  return workgroupUniformLoad(&${name}Shared[0]);
}
`;

/**
 * A sum over a workgroup; every thread gets it. By subgroups where the device has them and the program says so, one step in
 * shared memory after it; else by halving. The order of the sum is the device's own. Called as `name(mine)` in uniform
 * control flow, as often as needed.
 */
export const workgroupSum = (
  name: string,
  type: Element,
  { subgroups }: { readonly subgroups: boolean },
): { code: string; of(mine: string): string } =>
  subgroups
    ? {
        // A subgroup has at least four threads.
        code: `
var<workgroup> ${name}Shared: array<${type}, LANES / 4u>;
fn ${name}(mine: ${type}, subgroup: u32, subgroups: u32) -> ${type} {
  let own = subgroupAdd(mine);
  if (subgroupElect()) { ${name}Shared[subgroup] = own; }
  workgroupBarrier();
  var total = ${type}(0.0);
  for (var i = 0u; i < subgroups; i++) { total += ${name}Shared[i]; }
  workgroupBarrier();
  return total;
}`,
        of: (mine) => `${name}(${mine}, subgroup, subgroups)`,
      }
    : { code: reduction(name, 'a + b', type), of: (mine) => `${name}(${mine}, lane)` };
