#!/usr/bin/env python3
"""Compares a checkpoint directory's likelihoods with those of Hugging Face transformers.

    verbatim perplexity --model DIR --text FILE --policy portable --output ours.json
    scripts/compare_with_transformers.py DIR FILE ours.json [--windows 2]

Needs torch and transformers, which nothing else here needs. Prints, for some windows of the text, the mean negative
log-likelihood of `ours.json` less that of transformers (float32, logits summed in double).
"""
import argparse
import json

import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("text")
    parser.add_argument("ours")
    parser.add_argument("--windows", type=int, default=2, help="how many windows to compare, spread over those of ours.json")
    arguments = parser.parse_args()
    with open(arguments.ours, encoding="utf-8") as file:
        ours = json.load(file)
    losses, context = ours["window_negative_log_likelihood"], ours["context"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=torch.float32).eval()
    print(f"{type(model).__name__}, transformers {transformers.__version__}")
    with open(arguments.text, encoding="utf-8", errors="replace") as file:
        ids = tokenizer(file.read(), add_special_tokens=False)["input_ids"]
    available = len(ids) // context
    for i in range(0, len(losses), max(1, len(losses) // arguments.windows)):
        begin = i * available // len(losses) * context
        window = torch.tensor([ids[begin : begin + context]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        theirs = torch.nn.functional.cross_entropy(logits, window[0, 1:]).item()
        print(f"window {i}: {losses[i]:.9f}, difference {losses[i] - theirs:+.1e}", flush=True)


if __name__ == "__main__":
    main()
