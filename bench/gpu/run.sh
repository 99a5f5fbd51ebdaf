#!/usr/bin/env bash
# Everything this folder measures, in order of worth; results and a log go to $1 (default: results beside this file).
#   bash run.sh [folder] [parity] [kernels] [jobs] [torch]        default all
set -u
here="$(cd "$(dirname "$0")" && pwd)"
out="$(realpath -m "${1:-$here/results}")"
shift || true
parts="${*:-parity kernels jobs torch}"
mkdir -p "$out"
cd "$here" || exit 1

if [ -f native.tar.xz ] && [ ! -f node_modules/webgpu/dist/linux-x64/dawn.node ]; then
  xz -dc native.tar.xz 2>/dev/null | tar -x || python3 -c "import tarfile; tarfile.open('native.tar.xz').extractall('.')"
fi
node="$([ -x ./node ] && echo ./node || echo node)"

failed=0
for part in $parts; do
  echo "== $part"
  case "$part" in
  parity) "$node" parity.mjs | tee "$out/parity.txt"; failed=$((failed | PIPESTATUS[0])) ;;
  kernels) "$node" kernels.mjs | tee "$out/kernels.jsonl" ;;
  jobs)
    : >"$out/jobs.jsonl"
    for flags in "--base f32" "--base nf4" "--base f32 --memory-budget 8e9"; do
      "$node" job.mjs lora-step --batch 4 --length 128 --steps 10 $flags | tee -a "$out/jobs.jsonl"
    done
    for flags in "--base q4_1" "--base q4_1 --activations int8" "--base f32"; do
      "$node" job.mjs decode --steps 64 $flags | tee -a "$out/jobs.jsonl"
    done
    ;;
  torch)
    : >"$out/torch.jsonl"
    python3 torch_lora.py --device cuda --batch 4 --length 128 --steps 10 | tee -a "$out/torch.jsonl"
    python3 torch_decode.py --device cuda | tee -a "$out/torch.jsonl"
    ;;
  esac
done
exit $failed
