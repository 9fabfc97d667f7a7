#!/usr/bin/env python3
"""Makes tests/fixtures/reference: tiny checkpoints, and float64 references for them and for SmolLM2.

For maintainers; needs torch, transformers, tokenizers, safetensors, gguf and jinja2, which the tests
do not. The checkpoints' bytes follow from a seed; the references are computed in float64, so another
machine may differ in their last digits. docs/testing.md describes what is made and why.

  make_reference_fixtures.py                      make everything
  make_reference_fixtures.py --only hf_qwen3      make one fixture again
  make_reference_fixtures.py --check              make into a temporary folder, compare with what is there
"""

import argparse
import filecmp
import json
import os
import sys
import tempfile
import warnings

import numpy as np
import torch
import transformers

import reference_checkpoints as checkpoints
import reference_model as reference
import reference_moe
import reference_smollm2 as smollm2

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, "tests", "fixtures", "reference")

FORMAT_VERSION = 1
TOLERANCE_FACTOR = 6.0
TOP = 8
COLUMNS = 24
PROMPT_LENGTHS = [1, 7, 65, 151, 243, 300]
GREEDY_PROMPTS = [1, 2, 4]  # indices into PROMPT_LENGTHS; the last one crosses position 256 while decoding
GREEDY_STEPS = 32
NOISE_RUNS = 16


def compared_positions(n: int) -> list[int]:
    wanted = {0, 1, n // 2, 63, 64, 127, 128, 255, 256, n - 3, n - 2, n - 1}
    return sorted(p for p in wanted if 0 <= p < n)


def noise_sigma(model, ids, positions, columns, kind, runs):
    """Per position: the largest, over the compared columns, of the logit error's standard deviation.

    A column's own estimate from a few runs is noisy, so the row's over all columns is its floor.
    """
    exact = reference.logits(model, ids, "exact")[0, positions]
    total = torch.zeros_like(exact)
    for seed in range(0, runs, 2):
        noisy = reference.logits(model, ids, kind, seed=seed + 1, batch=2)[:, positions]
        total += (noisy - exact).square().sum(0)
    row = (total.mean(-1) / runs).sqrt()
    column = (total.gather(-1, columns) / runs).sqrt().amax(-1)
    return torch.maximum(row, column)


def error_figures(errors: torch.Tensor, sigma: torch.Tensor) -> dict:
    """errors [positions, vocab], sigma [positions]."""
    return {"max": float(errors.abs().max()), "rms": float(errors.square().mean().sqrt()),
            "max_over_tolerance": float((errors.abs() / (TOLERANCE_FACTOR * sigma[:, None])).max())}


class Writer:
    """Collects float64 arrays for reference.bin; the manifest holds their byte offsets."""

    def __init__(self):
        self.parts, self.offset = [], 0

    def add(self, values: torch.Tensor) -> int:
        data = values.contiguous().numpy().astype("<f8").tobytes()
        at = self.offset
        self.parts.append(data)
        self.offset += len(data)
        return at


def rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{v:.4e}") for v in values.tolist()]


def reference_prompt(models, writer, name, ids, rng, runs, sequential=True) -> dict:
    model64, model32 = models
    positions = compared_positions(len(ids))
    full = reference.logits(model64, ids, "exact")[0]
    rows = full[positions]
    vocab = rows.shape[1]
    top = torch.topk(rows, TOP, dim=-1)
    random_columns = np.sort(rng.choice(vocab, COLUMNS, replace=False))
    random_columns[0], random_columns[-1] = 0, vocab - 1
    shared = torch.from_numpy(random_columns)
    columns = torch.cat((shared.expand(len(positions), -1), top.indices), dim=-1)
    entry = {
        "name": name, "ids": ids, "positions": positions, "columns": shared.tolist(),
        "top_ids": top.indices.tolist(),
        "logits_offset": writer.add(rows[:, shared]),
        "top_logits_offset": writer.add(top.values),
        "log_sum_exp_offset": writer.add(torch.logsumexp(rows, dim=-1)),
    }
    sigma = {kind: noise_sigma(model64, ids, positions, columns, f"noise_{kind}", runs)
             for kind in ("tree", "fold")}
    entry["sigma_tree"], entry["sigma_fold"] = rounded(sigma["tree"]), rounded(sigma["fold"])
    fp32 = {}
    orders = [("exact", "library", "fold"), ("chunk128", "chunk128", "tree")]
    if sequential:
        orders.append(("sequential", "sequential", "fold"))
    for kind, label, bound in orders:
        errors = reference.logits(model32, ids, kind)[0, positions] - rows
        fp32[label] = error_figures(errors, sigma[bound])
        if fp32[label]["max_over_tolerance"] > 1:
            raise RuntimeError(f"{name}: fp32 order {label} is outside the tolerance: {fp32[label]}")
    entry["fp32_orders"] = fp32
    bf16 = reference.logits(model32, ids, "bf16")[0, positions] - rows
    entry["bf16_activations"] = {"max": float(bf16.abs().max()), "rms": float(bf16.square().mean().sqrt()),
                                 "logit_rms": float(rows.square().mean().sqrt())}
    return entry


def reference_greedy(models, prompt_index, ids, steps, runs) -> dict:
    """Tokens, the margin of each over the runner-up, and the sigma of that row."""
    model64, _ = models
    tokens = reference.greedy(model64, ids, steps)
    everything = ids + tokens[:-1]
    positions = list(range(len(ids) - 1, len(everything)))
    rows = reference.logits(model64, everything, "exact")[0, positions]
    top = torch.topk(rows, 2, dim=-1)
    if top.indices[:, 0].tolist() != tokens:
        raise RuntimeError("cached and uncached float64 decoding disagree")
    return {
        "prompt": prompt_index, "tokens": tokens, "runner_up": top.indices[:, 1].tolist(),
        "margins": rounded(top.values[:, 0] - top.values[:, 1]),
        "sigma_tree": rounded(noise_sigma(model64, everything, positions, top.indices, "noise_tree", runs)),
        "sigma_fold": rounded(noise_sigma(model64, everything, positions, top.indices, "noise_fold", runs)),
    }


def check_against_stock(spec, path, model64) -> float:
    """Largest difference from transformers without any of our changes, in float32, reading the file itself."""
    if spec.rope_scaling and spec.container == "gguf":
        return float("nan")  # transformers does not read rope_freqs.weight
    folder, options = path, {}
    if spec.container == "gguf" and spec.family == "mixtral":
        return float("nan")  # transformers reads this architecture as a dense Llama
    if spec.container == "gguf":
        folder, options["gguf_file"] = os.path.split(path)
        if spec.family in ("qwen3", "qwen2moe"):  # transformers does not read these families' sizes of parts
            options["config"] = reference.MODELS[spec.family][0](**checkpoints.hf_config(spec))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options)
    ids = prompts_of(spec)[3]
    with torch.no_grad():
        stock = model(torch.tensor([ids])).logits[0].double()
    return float((stock - reference.logits(model64, ids, "exact")[0]).abs().max())


def prompts_of(spec) -> list[list[int]]:
    rng = checkpoints.rng_for(spec.name, "prompts")
    return [rng.integers(0, spec.vocab, n).tolist() for n in PROMPT_LENGTHS]


def make_checkpoint_fixture(spec, root: str) -> dict:
    path = os.path.join(root, checkpoints.write(spec, root))
    weights, factors = checkpoints.load_weights(spec, root)
    config = checkpoints.hf_config(spec)
    if spec.container == "gguf":  # a GGUF holds these as fp32
        config["rms_norm_eps"], theta = float(np.float32(spec.eps)), float(np.float32(spec.theta))
    else:
        theta = spec.theta
    freqs = reference.frequencies(spec.head_dim, theta, spec.rope_scaling, factors)
    models = [reference.build(spec.family, config, weights, freqs, dtype, spec.moe)
              for dtype in (torch.float64, torch.float32)]
    stock = check_against_stock(spec, path, models[0])
    if stock > 1e-3:
        raise RuntimeError(f"{spec.name}: differs from unchanged transformers by {stock}")
    rng, writer = checkpoints.rng_for(spec.name, "columns"), Writer()
    prompts = prompts_of(spec)
    entry = {
        "name": spec.name, "checkpoint": os.path.relpath(path, root), "family": spec.family,
        "storage": spec.storage, "vocab_size": spec.vocab, "data": spec.name + ".ref.bin",
        "stock_transformers_fp32_max_difference": None if np.isnan(stock) else stock,
        "prompts": [reference_prompt(models, writer, f"random_{len(ids)}", ids, rng, NOISE_RUNS) for ids in prompts],
        "greedy": [reference_greedy(models, i, prompts[i], GREEDY_STEPS, NOISE_RUNS) for i in GREEDY_PROMPTS],
    }
    if spec.moe:
        check_routing(spec, models[0], entry)
    return finish(entry, writer, root)


def check_routing(spec, model64, entry: dict) -> None:
    """A token whose experts hang on a rounding error has no tolerance; another salt has no such token."""
    sequences = [p["ids"] for p in entry["prompts"]]
    sequences += [sequences[g["prompt"]] + g["tokens"] for g in entry["greedy"]]
    gap = min(reference_moe.smallest_gap(
        reference.router_logits(model64, ids, "exact"),
        [reference.router_logits(model64, ids, "noise_fold", seed=1 + s) for s in range(8)], spec.moe.top_k)
        for ids in sequences)
    entry["smallest_routing_gap"] = gap
    print(f"{spec.name}: chosen experts lead by at least {gap:.1f} standard deviations", flush=True)
    if gap < 2 * TOLERANCE_FACTOR:
        raise RuntimeError(f"{spec.name}: a token's experts hang on rounding; change the salt")


def make_smollm2_fixture(root: str) -> dict:
    model_path = os.path.join(ROOT, smollm2.CHECKPOINT)
    config, weights, freqs, prompts = smollm2.load(model_path)
    models = [reference.build("llama", config, weights, freqs, dtype) for dtype in (torch.float64, torch.float32)]
    rng, writer = checkpoints.rng_for("smollm2", "columns"), Writer()
    entry = {"name": "smollm2_135m_instruct", "checkpoint_in_source_tree": smollm2.CHECKPOINT,
             "family": "llama", "storage": "Q4_1", "vocab_size": config["vocab_size"],
             "data": "smollm2_135m_instruct.ref.bin", "prompts": [], "greedy": []}
    for i, (name, text, ids) in enumerate(prompts):
        print(f"  {name}: {len(ids)} tokens", flush=True)
        prompt = reference_prompt(models, writer, name, ids, rng, 8, sequential=len(ids) < 100)
        entry["prompts"].append(dict(prompt, text=text))
        if len(ids) < 200:
            entry["greedy"].append(reference_greedy(models, i, ids, 48, 4))
    return finish(entry, writer, root)


def finish(entry: dict, writer: Writer, root: str) -> dict:
    with open(os.path.join(root, entry["data"]), "wb") as f:
        f.write(b"".join(writer.parts))
    entry["data_bytes"] = writer.offset
    name = entry["name"] + ".ref.json"
    with open(os.path.join(root, name), "w", encoding="utf-8") as f:
        fields = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}"
                            for k, v in entry.items() if k not in ("prompts", "greedy"))
        f.write("{\n" + fields)
        for part in ("prompts", "greedy"):
            f.write(f",\n {json.dumps(part)}: [\n  " +
                    ",\n  ".join(json.dumps(e, ensure_ascii=False) for e in entry[part]) + "\n ]")
        f.write("\n}\n")
    worst = {}
    for p in entry["prompts"]:
        for order, figures in p["fp32_orders"].items():
            worst[order] = max(worst.get(order, 0.0), figures["max_over_tolerance"])
    sigma = max(max(p["sigma_tree"]) for p in entry["prompts"])
    margins = [m for g in entry["greedy"] for m in g["margins"]]
    bf16 = max(p["bf16_activations"]["max"] for p in entry["prompts"])
    print(f"{entry['name']}: tolerance up to {TOLERANCE_FACTOR * sigma:.2e}, fp32 error/tolerance "
          f"{ {k: round(v, 3) for k, v in worst.items()} }, bf16 max {bf16:.2e}, smallest margin {min(margins):.2e}, "
          f"distinct greedy tokens {len(set(t for g in entry['greedy'] for t in g['tokens']))}, "
          f"logit rms {entry['prompts'][-1]['bf16_activations']['logit_rms']:.2f}, "
          f"stock difference {entry.get('stock_transformers_fp32_max_difference')}", flush=True)
    return entry


def make(root: str, only: str | None) -> None:
    os.makedirs(root, exist_ok=True)
    for spec in checkpoints.SPECS:
        if only in (None, spec.name):
            make_checkpoint_fixture(spec, root)
    if only in (None, "smollm2_135m_instruct"):
        make_smollm2_fixture(root)
    manifest = {
        "format_version": FORMAT_VERSION, "tolerance_factor": TOLERANCE_FACTOR,
        "fixtures": [s.name + ".ref.json" for s in checkpoints.SPECS] + ["smollm2_135m_instruct.ref.json"],
        "made_with": {m.__name__: m.__version__ for m in (torch, transformers, np)},
    }
    with open(os.path.join(root, "manifest.json"), "w", encoding="utf-8") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")


def check(only: str | None) -> int:
    """Checkpoints must be equal byte for byte, references within 1e-9."""
    bad = 0
    with tempfile.TemporaryDirectory() as root:
        make(root, only)
        for folder, _, files in os.walk(root):
            for file in files:
                made = os.path.join(folder, file)
                kept = os.path.join(FIXTURES, os.path.relpath(made, root))
                if file.endswith(".ref.bin"):
                    same = np.allclose(np.fromfile(made, "<f8"), np.fromfile(kept, "<f8"), rtol=0, atol=1e-9)
                elif file.endswith(".ref.json") or file == "manifest.json":
                    continue  # noise estimates depend on torch's generator
                else:
                    same = filecmp.cmp(made, kept, shallow=False)
                if not same:
                    print(f"differs: {os.path.relpath(made, root)}")
                    bad += 1
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="name of one fixture")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.use_deterministic_algorithms(True)
    if args.check:
        return check(args.only)
    make(FIXTURES, args.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
