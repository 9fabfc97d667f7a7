#!/usr/bin/env python3
"""Compiles every CUDA kernel to PTX and looks for arithmetic that the contract excludes.

Usage: cuda_ptx_test.py NVCC SOURCE_DIR FLAG... Exit status 1 and one line per finding otherwise.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Without .rn the assembler may contract a multiplication and an addition; the rest are approximations, flushed subnormals,
# and sums of floats in an order that nobody fixes.
EXCLUDED = re.compile(r"\b(?:(?:add|sub|mul)\.f(?:32|64)|mad\.f(?:32|64)|\S*\.approx\S*|\S*\.ftz\S*|atom\S*\.f(?:16|32|64)\S*|"
                      r"red\S*\.f(?:16|32|64)\S*)\s")
PLANTED = {
    "contraction": "mul.f32 \t%f1, %f2, %f3;",
    "approximation": "ex2.approx.f32 \t%f1, %f2;",
    "flush": "add.rn.ftz.f32 \t%f1, %f2, %f3;",
    "atomic": "atom.global.add.f32 \t%f1, [%rd1], %f2;",
}
ALLOWED = ("add.rn.f32 \t%f1, %f2, %f3;", "fma.rn.f32 \t%f1, %f2, %f3, %f4;", "div.rn.f32 \t%f1, %f2, %f3;",
           "atom.global.add.u64 \t%rd1, [%rd2], %rd3;", "mul.lo.s32 \t%r1, %r2, %r3;")


def findings(kernel, nvcc, source_dir, flags):
    """Lines of a kernel's PTX that must not be there, or what nvcc said."""
    with tempfile.TemporaryDirectory() as directory:
        ptx = pathlib.Path(directory) / "kernel.ptx"
        command = [nvcc, *flags, "-arch=compute_90a", "-ptx", f"-I{source_dir}", str(kernel), "-o", str(ptx)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return [f"{kernel.name}: {result.stderr.strip()}"]
        lines = ptx.read_text(encoding="utf-8").splitlines()
        return [f"{kernel.name}: {line.strip()}" for line in lines if EXCLUDED.search(line + " ")]


def main():
    nvcc, source_dir, *flags = sys.argv[1:]
    if not all(EXCLUDED.search(line) for line in PLANTED.values()) or any(EXCLUDED.search(line) for line in ALLOWED):
        print("the check does not find planted faults")
        return 1
    kernels = sorted((pathlib.Path(source_dir) / "kernels" / "cuda").glob("*.cu"))
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        found = [line for lines in pool.map(lambda k: findings(k, nvcc, source_dir, flags), kernels) for line in lines]
    print("\n".join(found[:50]) if found else f"{len(kernels)} kernels compile, and compute as the contract says")
    return 1 if found or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
