#!/usr/bin/env python3
"""Runs scripts/gpu-suite over stub programs and a stub nvidia-smi: what it writes, and how it ends.

Usage: gpu_suite_test.py SOURCE_DIR.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest

SUITE = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve() / "scripts" / "gpu-suite"

NVIDIA_SMI = 'echo "NVIDIA H200, 580.1, 143771, 1980, 3201, 1980, 3201, 700.00, 30"'
TEST_PROGRAM = """echo "[       OK ] A.b (1 ms)"; echo '[  PASSED  ] 1 test with a "quote".'"""
# Writes a file where --output names one, as `verbatim conformance` and `verbatim lab demo` do.
VERBATIM = """while [ $# -gt 0 ]; do [ "$1" = --output ] && echo "{\\"cells\\": []}" >"$2"; shift; done"""


class GpuSuiteTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        bundle = self.folder / "bundle"
        (bundle / "bin").mkdir(parents=True)
        (self.folder / "path").mkdir()
        shutil.copy(SUITE, bundle / "run.sh")
        (bundle / "commit").write_text("0123abcd\n")
        self.program("path/nvidia-smi", NVIDIA_SMI)
        self.program("path/python3", f'case "$1" in -c) exit 1;; esac; exec {sys.executable} "$@"')
        for name in ("cuda_native_test", "cuda_forward_test"):
            self.program(f"bundle/bin/{name}", TEST_PROGRAM)
        self.program("bundle/bin/verbatim", VERBATIM)
        self.program("bundle/bin/cuda_bench", """echo '{"copy_gb_s": 1}'""")
        self.program("bundle/bin/cuda_model_bench", """echo '{"models": []}'""")

    def program(self, name, body):
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run_suite(self, *sections):
        """Exit status, and the JSON that was written or None."""
        output = self.folder / "out.json"
        env = {**os.environ, "PATH": f"{self.folder / 'path'}:/usr/bin:/bin"}
        done = subprocess.run(["bash", self.folder / "bundle" / "run.sh", output, *sections], env=env, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        self.log = done.stdout
        return done.returncode, json.loads(output.read_text()) if output.exists() else None

    def test_everything_passes(self):
        code, result = self.run_suite()
        self.assertEqual(code, 0, self.log)
        self.assertIs(result["passed"], True)
        self.assertEqual(result["commit"], "0123abcd")
        self.assertEqual(result["gpu"]["name"], "NVIDIA H200")
        self.assertEqual(result["gpu"]["driver_version"], "580.1")
        for name in ("kernels", "forward", "conformance", "model_bench"):
            self.assertIs(result["tests"][name]["ran"], True, name)
            self.assertEqual(result["tests"][name]["exit"], 0, name)
        self.assertEqual(result["tests"]["kernels"]["passed"], 1)
        self.assertEqual(result["conformance"], {"cells": []})
        self.assertEqual(result["bench"], {"copy_gb_s": 1})
        self.assertEqual(result["model_bench"], {"models": []})

    def test_without_wgmma_the_rest_does_without(self):
        self.program("bundle/bin/cuda_native_test", f"""case $1 in --gtest_filter=Gemm*) exit 1;; esac; {TEST_PROGRAM}""")
        self.program("bundle/bin/cuda_bench", """echo "{\\"asked\\": \\"$VERBATIM_PINNED_GEMM\\"}\"""")
        code, result = self.run_suite()
        self.assertEqual(code, 1)
        self.assertEqual(result["tests"]["wgmma"]["exit"], 1)
        self.assertEqual(result["tests"]["kernels"]["exit"], 0)
        self.assertEqual(result["bench"], {"asked": "mma"})

    def test_sections_by_name(self):
        code, result = self.run_suite("forward", "bench")
        self.assertEqual(code, 0, self.log)
        ran = [name for name, section in result["tests"].items() if section["ran"]]
        self.assertEqual(ran, ["forward"])
        self.assertEqual(result["bench"], {"copy_gb_s": 1})
        self.assertIsNone(result["model_bench"])

    def test_whole_logs_are_kept(self):
        self.run_suite()
        with tarfile.open(self.folder / "out.logs.tar.gz") as logs:
            self.assertIn(b"PASSED", logs.extractfile("./kernels").read())

    def test_what_cannot_run_says_why(self):
        result = self.run_suite()[1]
        for name, why in (("demo", "is not beside run.sh"), ("conformance_model", "is not beside run.sh"),
                          ("compare", "torch"), ("memcheck", "compute-sanitizer")):
            self.assertIs(result["tests"][name]["ran"], False)
            self.assertIn(why, result["tests"][name]["why"])
            self.assertIsNone(result.get(name))

    def test_a_model_beside_it_is_used(self):
        (self.folder / "bundle" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_text("")
        code, result = self.run_suite()
        self.assertEqual(code, 0, self.log)
        for name in ("demo", "conformance_model"):
            self.assertIs(result["tests"][name]["ran"], True)
            self.assertEqual(result[name], {"cells": []})

    def test_every_program_that_fails_fails_the_suite(self):
        sections = {"cuda_native_test": "kernels", "cuda_forward_test": "forward", "verbatim": "conformance",
                    "cuda_model_bench": "model_bench", "cuda_bench": None}
        for program, section in sections.items():
            with self.subTest(program=program):
                path = self.folder / "bundle" / "bin" / program
                body = path.read_text()
                path.write_text('#!/bin/bash\necho "it \\"broke\\"" >&2\nexit 3\n')
                code, result = self.run_suite()
                path.write_text(body)
                self.assertEqual(code, 1, self.log)
                self.assertIs(result["passed"], False)
                if section is not None:
                    self.assertEqual(result["tests"][section]["exit"], 3)
                    self.assertIn("broke", result["tests"][section]["end"])
                else:
                    self.assertIn("broke", result["bench"]["failed"])

    def test_without_a_gpu_nothing_runs(self):
        self.program("path/nvidia-smi", "echo No devices were found; exit 6")
        code, result = self.run_suite()
        self.assertEqual(code, 2)
        self.assertIsNone(result)
        self.assertIn("No devices were found", self.log)


if __name__ == "__main__":
    unittest.main(verbosity=2)
