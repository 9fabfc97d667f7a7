#!/usr/bin/env python3
"""Compares Verbatim with PyTorch, Triton and Hugging Face transformers on the machine that it runs on.

    scripts/gpu_compare.py --programs FOLDER [--output compare.json]

Two parts, each side by side in one run, rounds taking turns:
- products: `torch.mm`, a batch-invariant Triton product (the published kind: persistent, one tile shape and no split of the
  inner axis whatever the number of rows) and cuda_bench's PINNED product, at the same shapes. torch.mm and Triton multiply bf16 by
  bf16 into bf16; PINNED takes and gives fp32, which it rounds itself, so it moves more bytes.
- serving: the same random weights and the same requests through `verbatim serve` (throughput and pinned), transformers'
  generate in one batch, and its continuous batching. Output tokens a second; Verbatim's through gRPC on loopback.

Needs torch and transformers (and triton for its line), and FOLDER with the programs verbatim and cuda_bench. With --device cpu
only the serving part runs, with a tiny model: a check of this script, whose figures mean nothing.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {  # n, k of each product of a layer of Llama-3.1-8B
    "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = (1, 8, 16, 64, 256, 2048)
MODELS = {
    "llama-3.2-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=131072,
                         rope_theta=500000.0, tie_word_embeddings=True),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, vocab_size=320, max_position_embeddings=2048,
                 rope_theta=10000.0, tie_word_embeddings=True),
}

PROGRAM_ENV = dict(os.environ)  # of verbatim and cuda_bench


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# Products


def triton_product():
    """A batch-invariant product: callable(x [m, k], w [n, k]) -> [m, n], all bf16; None without triton."""
    try:
        import torch
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit
    def kernel(x, w, y, m, n, k, programs, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
               group: tl.constexpr):
        tiles_m = tl.cdiv(m, block_m)
        tiles_n = tl.cdiv(n, block_n)
        for tile in range(tl.program_id(0), tiles_m * tiles_n, programs):
            # Groups of row tiles share the columns that they read.
            first = tile // (group * tiles_n) * group
            size = min(tiles_m - first, group)
            tile_m = first + tile % (group * tiles_n) % size
            tile_n = tile % (group * tiles_n) // size
            rows = tile_m * block_m + tl.arange(0, block_m)
            columns = tile_n * block_n + tl.arange(0, block_n)
            inner = tl.arange(0, block_k)
            x_at = x + (rows % m)[:, None] * k + inner[None, :]
            w_at = w + (columns % n)[None, :] * k + inner[:, None]
            sums = tl.zeros((block_m, block_n), dtype=tl.float32)
            for step in range(0, tl.cdiv(k, block_k)):
                left = k - step * block_k
                a = tl.load(x_at, mask=inner[None, :] < left, other=0.0)
                b = tl.load(w_at, mask=inner[:, None] < left, other=0.0)
                sums = tl.dot(a, b, sums)
                x_at += block_k
                w_at += block_k
            tl.store(y + rows[:, None] * n + columns[None, :], sums.to(tl.bfloat16),
                     mask=(rows[:, None] < m) & (columns[None, :] < n))

    programs = torch.cuda.get_device_properties(0).multi_processor_count

    def run(x, w):
        m, k = x.shape
        n = w.shape[0]
        y = torch.empty((m, n), dtype=torch.bfloat16, device=x.device)
        kernel[(programs,)](x, w, y, m, n, k, programs, block_m=128, block_n=128, block_k=64, group=8,
                            num_stages=4, num_warps=8)
        return y

    return run


def microseconds(call):
    """Median over 7 batches of about 20 ms, by CUDA events; `call(i)` is the i-th call."""
    import torch

    def batch(count):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(count):
            call(i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / count

    batch(3)
    count = max(1, min(2000, int(20e3 / batch(3))))
    return statistics.median(batch(count) for _ in range(7))


def our_products(programs, seconds):
    """{(n, k, rows): µs} of one run of cuda_bench."""
    answer = subprocess.run([os.path.join(programs, "cuda_bench"), "--only", "gemm", "--seconds", str(seconds)],
                            stdout=subprocess.PIPE, check=True, timeout=seconds + 60, env=PROGRAM_ENV)
    rows = json.loads(answer.stdout)["gemm"]
    return {(r["n"], r["k"], r["tokens"]): r["pinned"]["us"] for r in rows if "pinned" in r}


def compare_products(programs):
    import torch

    triton = triton_product()
    before = our_products(programs, 40)
    generator = torch.Generator(device="cuda").manual_seed(1)
    results = []
    for name, (n, k) in SHAPES.items():
        # More weights than the cache holds, taken in turn, as in cuda_bench.
        copies = max(2, (256 << 20) // (2 * n * k))
        weights = [torch.randn((n, k), device="cuda", generator=generator).mul_(0.02).bfloat16() for _ in range(copies)]
        for rows in ROWS:
            x = torch.randn((rows, k), device="cuda", generator=generator).bfloat16()
            row = {"shape": name, "n": n, "k": k, "rows": rows,
                   "torch_mm_us": microseconds(lambda i: torch.mm(x, weights[i % copies].t()))}
            alone = torch.equal(torch.mm(x[:1], weights[0].t())[0], torch.mm(x, weights[0].t())[0])
            row["torch_mm_row_keeps_its_bits_alone"] = alone
            if triton is not None:
                expected = x.float() @ weights[0].t().float()
                error = ((triton(x, weights[0]).float() - expected).abs().max() / expected.abs().max()).item()
                if not error < 0.02:
                    raise RuntimeError(f"the Triton product is wrong by {error}")
                row["triton_us"] = microseconds(lambda i: triton(x, weights[i % copies]))
                row["triton_row_keeps_its_bits_alone"] = torch.equal(triton(x[:1], weights[0])[0], triton(x, weights[0])[0])
            results.append(row)
            say(json.dumps(row))
        del weights
    after = our_products(programs, 40)
    for row in results:
        key = (row["n"], row["k"], row["rows"])
        ours = [run[key] for run in (before, after) if key in run]
        if not ours:
            continue
        row["pinned_us"] = min(ours)
        row["pinned_us_both_runs"] = ours
        row["pinned_speed_over_torch_mm"] = row["torch_mm_us"] / row["pinned_us"]
        if "triton_us" in row:
            row["pinned_speed_over_triton"] = row["triton_us"] / row["pinned_us"]
    return results


# ---------------------------------------------------------------------------------------------
# Serving


def byte_characters():
    """The characters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    table = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def make_checkpoint(shape, folder, device):
    """A Llama of random bf16 weights, with a tokenizer that knows bytes; the model, on `device`."""
    import torch
    import transformers

    settings = MODELS[shape]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**settings, bos_token_id=None, eos_token_id=0, torch_dtype="bfloat16")
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).bfloat16().eval()
    model.save_pretrained(folder)
    tokens = ["<eos>"] + byte_characters()
    tokens += [f"<{i}>" for i in range(len(tokens), settings["vocab_size"])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": "<eos>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}}
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokenizer, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "eos_token": "<eos>"}, file)
    return model


class Server:
    """`verbatim serve` on a free port."""

    def __init__(self, programs, model, device, requests, work):
        port_file = os.path.join(work, "port")
        self.log = open(os.path.join(work, "serve.log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [os.path.join(programs, "verbatim"), "serve", "--model", model, "--device", device, "--port", "0",
             "--port-file", port_file, "--max-num-seqs", str(requests), "--no-enable-prefix-caching",
             "--max-num-batched-tokens", "2048"] + ([] if device == "cpu" else ["--kv-cache-bytes", "8GiB"]),
            stdout=self.log, stderr=self.log, env=PROGRAM_ENV)
        deadline = time.monotonic() + 120
        while not os.path.exists(port_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.log.seek(0)
                raise RuntimeError("verbatim serve did not start: " + self.log.read()[-2000:])
            time.sleep(0.1)
        with open(port_file, encoding="utf-8") as file:
            self.target = f"127.0.0.1:{file.read().strip()}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def compare_serving(programs, device, shape, requests, input_len, output_len, rounds):
    import torch
    import transformers

    work = tempfile.mkdtemp()
    server = None
    try:
        folder = os.path.join(work, "model")
        model = make_checkpoint(shape, folder, device)
        server = Server(programs, folder, device, requests, work)
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(1, MODELS[shape]["vocab_size"], (requests, input_len), generator=generator)
        tokens = requests * output_len
        generation = transformers.GenerationConfig(
            max_new_tokens=output_len, min_new_tokens=output_len, do_sample=False, eos_token_id=None, pad_token_id=0)

        def ours(policy):
            result = os.path.join(work, "bench.json")
            subprocess.run(
                [os.path.join(programs, "verbatim"), "bench", "--target", server.target, "--num-prompts", str(requests),
                 "--random-input-len", str(input_len), "--random-output-len", str(output_len), "--ignore-eos", "--disable-tqdm",
                 "--determinism", policy, "--save-result", "--result-dir", work, "--result-filename", "bench.json"],
                stdout=subprocess.DEVNULL, check=True, timeout=300, env=PROGRAM_ENV)
            with open(result, encoding="utf-8") as file:
                figures = json.load(file)
            if figures["completed"] != requests or figures["total_output_tokens"] != tokens:
                raise RuntimeError(f"{figures['completed']} of {requests} requests completed")
            return figures["output_throughput"]

        def timed(call):
            if device != "cpu":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            with torch.no_grad():  # its continuous batching writes to tensors outside of inference mode
                produced = call()
            if device != "cpu":
                torch.cuda.synchronize()
            if produced != tokens:
                raise RuntimeError(f"{produced} output tokens, not {tokens}")
            return tokens / (time.perf_counter() - begin)

        def plain():
            answer = model.generate(ids.to(device), attention_mask=torch.ones_like(ids).to(device),
                                    generation_config=generation)
            return (answer.shape[1] - input_len) * requests

        def continuous():
            answers = model.generate_batch(inputs=ids.tolist(), generation_config=generation)
            return sum(len(answer.generated_tokens) for answer in answers.values())

        contestants = {"verbatim_throughput": lambda: ours("throughput"), "verbatim_pinned": lambda: ours("pinned"),
                       "transformers_generate": lambda: timed(plain),
                       "transformers_continuous": lambda: timed(continuous)}
        speeds = {name: [] for name in contestants}
        failed = {}
        for turn in range(rounds + 1):
            for name, call in contestants.items():
                if name in failed:
                    continue
                try:
                    speed = call()
                except Exception as error:  # another library's failure is a result, not the end
                    if name.startswith("verbatim"):
                        raise
                    failed[name] = f"{type(error).__name__}: {error}"[:500]
                    continue
                if turn > 0:  # the first warms up
                    speeds[name].append(speed)
                    say(f"{name}: {speed:.1f} tokens/s")
        result = {"model": f"{shape}, random bf16 weights", "requests": requests, "input_len": input_len,
                  "output_len": output_len, "transformers": transformers.__version__, "tokens_per_s": {}}
        if failed:
            result["failed"] = failed
        for name, values in speeds.items():
            if values:
                result["tokens_per_s"][name] = {
                    "median": statistics.median(values), "least": min(values), "greatest": max(values), "n": len(values)}
        medians = {name: figures["median"] for name, figures in result["tokens_per_s"].items()}
        for name in ("transformers_generate", "transformers_continuous"):
            if name in medians:
                result[f"verbatim_pinned_over_{name}"] = medians["verbatim_pinned"] / medians[name]
        result["pinned_over_throughput"] = medians["verbatim_pinned"] / medians["verbatim_throughput"]
        return result
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", required=True, help="folder with the programs verbatim and cuda_bench")
    parser.add_argument("--library-path", help="LD_LIBRARY_PATH for the programs; default: this one's")
    parser.add_argument("--output", help="JSON file to write; default: standard output")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-products", action="store_true")
    parser.add_argument("--skip-serving", action="store_true")
    arguments = parser.parse_args()
    if arguments.library_path is not None:
        PROGRAM_ENV["LD_LIBRARY_PATH"] = arguments.library_path
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_compare: torch sees no GPU")
    result = {"torch": torch.__version__,
              "device": "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(0)}
    if arguments.device == "cuda" and not arguments.skip_products:
        result["products"] = compare_products(arguments.programs)
    if not arguments.skip_serving:
        result["serving"] = compare_serving(
            arguments.programs, arguments.device, "tiny" if arguments.device == "cpu" else "llama-3.2-1b",
            arguments.requests, arguments.input_len, arguments.output_len, arguments.rounds)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
