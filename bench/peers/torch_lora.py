"""The same job as bench/jobs/lora-step.mjs, with torch and peft on the CPU or a card: one JSON object on stdout.

    python3 bench/peers/torch_lora.py [--batch 1] [--length 256] [--steps 5] [--threads 2] [--rank 8] [--checkpoint] [--device cpu|cuda]

The base is float32. --checkpoint computes each block again in the backward pass.
"""
import argparse
import json
import pathlib
import resource
import statistics
import sys
import time

flags = argparse.ArgumentParser()
for name, default in (("batch", 1), ("length", 256), ("steps", 5), ("threads", 2), ("rank", 8)):
    flags.add_argument(f"--{name}", type=int, default=default)
flags.add_argument("--checkpoint", action="store_true")
flags.add_argument("--device", default="cpu")
options = flags.parse_args()

try:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    print(f"cannot import {error.name}", file=sys.stderr)
    sys.exit(3)

torch.manual_seed(0)
torch.set_num_threads(options.threads)
model = LlamaForCausalLM(LlamaConfig(**json.loads(pathlib.Path(__file__).with_name("smollm2.json").read_text())))
model.config.use_cache = False
model = get_peft_model(model, LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"))
if options.checkpoint:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
model.train().to(options.device)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
ids = torch.randint(0, 49152, (options.batch, options.length), device=options.device)

seconds, cpu_seconds = [], []
for step in range(options.steps + 1):
    started, cpu = time.perf_counter(), time.process_time()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if options.device != "cpu":
        torch.cuda.synchronize()
    if step > 0:
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu)

tokens = options.batch * options.length
print(
    json.dumps(
        {
            "job": "lora-step",
            "device": f"torch {torch.__version__}, "
            + (f"{options.threads} threads" if options.device == "cpu" else torch.cuda.get_device_name()),
            "base": "f32",
            "batch": options.batch,
            "length": options.length,
            "rank": options.rank,
            "recompute": "full" if options.checkpoint else "none",
            "tokensPerSecond": tokens / statistics.median(seconds),
            "bestTokensPerSecond": tokens / min(seconds),
            "secondsPerStep": seconds,
            "cpuSecondsPerStep": cpu_seconds,
            **({} if options.device == "cpu" else {"peakTensorBytes": torch.cuda.max_memory_allocated()}),
            # Linux counts in KiB.
            "peakRssBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }
    )
)
