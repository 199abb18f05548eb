"""The peer of `nlpstack generate`: the plain script that people write with transformers.

python benchmarks/peer_generate.py FOLDER PROMPT NEW_TOKENS DTYPE
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt, n_new, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
with torch.inference_mode():
    new = model.generate(**inputs, max_new_tokens=int(n_new), min_new_tokens=int(n_new), do_sample=False)
print(tokenizer.decode(new[0]))
