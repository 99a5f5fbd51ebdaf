"""The same job as bench/jobs/decode.mjs, by llama.cpp through its Python binding on the CPU: one JSON object on stdout.

    python3 bench/peers/llama_cpp_decode.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--length 16] [--steps 64] [--threads 2]

The file is of the shape that the job has; its numbers do not change what a token takes.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time

flags = argparse.ArgumentParser()
flags.add_argument("--model", required=True)
for name, default in (("length", 16), ("steps", 64), ("threads", 2)):
    flags.add_argument(f"--{name}", type=int, default=default)
options = flags.parse_args()

try:
    import llama_cpp
except ImportError as error:
    print(f"cannot import {error.name}", file=sys.stderr)
    sys.exit(3)
if not os.path.exists(options.model):
    print(f"{options.model} is not there", file=sys.stderr)
    sys.exit(3)

warm = 4
model = llama_cpp.Llama(
    options.model,
    n_ctx=options.length + options.steps + warm,
    n_threads=options.threads,
    n_threads_batch=options.threads,
    n_gpu_layers=0,
    verbose=False,
)
ids = [1 + (2654435761 * (i + 1)) % 2**32 % (model.n_vocab() - 1) for i in range(options.length)]
started = time.perf_counter()
model.eval(ids)
prompt_seconds = time.perf_counter() - started

seconds = []
for step in range(options.steps + warm):
    started = time.perf_counter()
    model.eval([model.sample(temp=0.0)])
    if step >= warm:
        seconds.append(time.perf_counter() - started)

print(
    json.dumps(
        {
            "job": "decode",
            "device": f"llama.cpp by llama_cpp {llama_cpp.__version__}, {options.threads} threads",
            "base": os.path.basename(options.model),
            "length": options.length,
            "tokensPerSecond": 1 / statistics.median(seconds),
            "bestTokensPerSecond": 1 / min(seconds),
            "promptSeconds": prompt_seconds,
            # Linux counts in KiB.
            "peakRssBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }
    )
)
