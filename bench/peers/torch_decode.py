"""The same job as bench/jobs/decode.mjs, with transformers on the CPU or a card: one JSON object a type on stdout.

    python3 bench/peers/torch_decode.py [--length 16] [--steps 64] [--threads 2] [--device cpu|cuda] [--types float32 bfloat16]

A greedy loop over the key-value cache, one token at a time, read back each time as a page that shows it has to.
"""
import argparse
import json
import pathlib
import statistics
import sys
import time

flags = argparse.ArgumentParser()
for name, default in (("length", 16), ("steps", 64), ("threads", 2)):
    flags.add_argument(f"--{name}", type=int, default=default)
flags.add_argument("--device", default="cpu")
flags.add_argument("--types", nargs="+", default=["float32"])
options = flags.parse_args()

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    print(f"cannot import {error.name}", file=sys.stderr)
    sys.exit(3)

torch.manual_seed(0)
torch.set_num_threads(options.threads)
config = LlamaConfig(**json.loads(pathlib.Path(__file__).with_name("smollm2.json").read_text()))
for name in options.types:
    model = LlamaForCausalLM(config).to(options.device, getattr(torch, name)).eval()
    ids = torch.randint(0, 49152, (1, options.length), device=options.device)
    seconds, warm = [], 4
    with torch.no_grad():
        cache, token = None, ids
        for step in range(options.steps + warm):
            started = time.perf_counter()
            result = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = result.past_key_values, result.logits[:, -1:].argmax(-1)
            token.item()
            if step >= warm:
                seconds.append(time.perf_counter() - started)
    print(
        json.dumps(
            {
                "job": "decode",
                "device": f"torch {torch.__version__}, "
                + (f"{options.threads} threads" if options.device == "cpu" else torch.cuda.get_device_name()),
                "base": name,
                "length": options.length,
                "tokensPerSecond": 1 / statistics.median(seconds),
                "bestTokensPerSecond": 1 / min(seconds),
            }
        )
    )
