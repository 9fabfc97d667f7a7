#!/usr/bin/env bash
# Runs the benchmarks one after another and joins their JSON into out/bench.json. Called by ./run bench, which builds first.
set -euo pipefail
cd "$(dirname "$0")/.."
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
out=out/bench
mkdir -p "$out"

echo "== matrix products: tree against oneDNN"
build/cpu/bench/gemm_bench --json="$out/gemm.json"
echo "== mixture of experts against the dense layer of its active width"
build/cpu/bench/moe_bench --json="$out/moe.json"
echo "== attention: strong against throughput kernels"
build/cpu/bench/attention_bench --json="$out/attention.json"
echo "== scheduler"
build/cpu/bench/scheduler_bench --benchmark_out="$out/scheduler.json" --benchmark_out_format=json
echo "== verification against generation"
build/cpu/bench/verify_bench --model="$model" --json="$out/verify.json"
echo "== end to end through gRPC"
build/cpu/cli/verbatim lab serving-bench --model "$model" --output "$out/serving.json"

python3 - "$out" out/bench.json <<'PY'
import json, pathlib, platform, sys
parts, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
joined = {"machine": {"cpu": cpu, "system": platform.platform()}}
for path in sorted(parts.glob("*.json")):
    joined[path.stem] = json.loads(path.read_text())
target.write_text(json.dumps(joined, indent=1) + "\n")
print(f"wrote {target}")
PY
