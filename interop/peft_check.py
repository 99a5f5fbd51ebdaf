"""Loads adapters with Hugging Face PEFT and prints what they give.

usage: python3 peft_check.py jobs.json

jobs.json holds a list of {"base", "adapter", "ids", "resave"?}: the folder of a base model, that of an adapter, token ids
[batch][time], and a folder to save the adapter to again. Prints a JSON list of {"logits", "merged", "missing"}: logits with
the adapter active, logits after merging, and tensors that PEFT did not find. Needs torch, transformers and peft.
"""

import json
import sys
import warnings

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def run(job):
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="eager").eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, job["adapter"]).eval()
    ids = torch.tensor(job["ids"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        if "resave" in job:
            model.save_pretrained(job["resave"])
        merged = model.merge_and_unload()(input_ids=ids).logits
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    return {"logits": logits.flatten().tolist(), "merged": merged.flatten().tolist(), "missing": missing}


with open(sys.argv[1], encoding="utf-8") as file:
    jobs = json.load(file)
json.dump([run(job) for job in jobs], sys.stdout)
