#!/usr/bin/env python3
"""Checks that includes between folders point only along the arrows of ARCHITECTURE.md.

Usage: include_arrows_test.py SOURCE_DIR. Exit status 1 and one line per wrong include otherwise.
"""

import pathlib
import re
import sys
import tempfile

# A folder may include itself, and these. The most specific folder of a file counts.
ALLOWED = {
    "kernels/numerics": [],
    "kernels/ops": ["kernels/numerics"],
    "kernels": ["kernels/numerics", "kernels/ops"],
    "kernels/cpu": ["kernels/numerics", "kernels/ops", "kernels"],
    "kernels/cuda": ["kernels/numerics", "kernels/ops", "kernels"],
    "kernels/device": ["kernels", "kernels/cpu", "kernels/cuda"],
    "parallel": ["kernels/numerics", "kernels/ops", "kernels", "kernels/cuda"],
    "model": ["parallel", "kernels/numerics", "kernels/ops", "kernels"],
    "scheduler": [],
    "trace": ["model", "kernels/numerics", "kernels/ops"],
    "engine": ["trace", "model", "parallel", "scheduler", "kernels/numerics", "kernels/ops", "kernels"],
    "receipt": ["model", "kernels/numerics", "proto"],
    "proto": [],
    "flags": [],
    "report": [],
    "replay": ["report", "receipt", "trace", "engine", "model", "scheduler", "kernels/numerics", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "flags"],
    "fragility": [],
    "evaluate": ["report", "model", "kernels/numerics", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "flags"],
    "upcycle": ["evaluate", "model", "kernels/numerics", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "flags"],
    "server": ["fragility", "receipt", "trace", "engine", "model", "parallel", "scheduler", "kernels/numerics", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "proto", "flags"],
    "client": ["receipt", "proto", "flags", "report"],
    "lab": ["client", "evaluate", "fragility", "report", "replay", "trace", "engine", "model", "scheduler", "kernels/numerics", "kernels/ops", "kernels", "proto", "flags"],
    "conformance": ["client", "lab", "engine", "model", "parallel", "scheduler", "kernels/numerics", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "proto", "flags"],
    "verify": ["server", "client", "receipt", "engine", "model", "scheduler", "kernels/ops", "kernels", "kernels/cpu", "kernels/device", "proto", "flags"],
    "cli": ["server", "client", "replay", "lab", "verify", "conformance", "evaluate", "upcycle", "flags"],
}
# Tests may use a real backend.
TEST_EXTRA = ["kernels/cpu", "tests"]
CUDA_HEADER = re.compile(r"^(cuda|cublas|nccl|cub/|thrust/)")
NCCL_FOLDERS = ["parallel"]


def folder_of(path):
    """The most specific known folder of a path relative to the source tree, or None."""
    best = None
    for folder in ALLOWED:
        if path.startswith(folder + "/") and (best is None or len(folder) > len(best)):
            best = folder
    return best


def wrong_includes(root):
    """Yields one message per include that has no arrow."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        folder = folder_of(relative)
        if folder is None or path.suffix not in {".h", ".cc", ".inc", ".cu", ".cuh"}:
            continue
        is_test = path.stem.endswith("_test") or "test" in path.stem.split("_")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*[<"]([^">]+)[">]', line)
            if not match:
                continue
            header = match.group(1)
            is_nccl = header.startswith("nccl") and folder in NCCL_FOLDERS
            if CUDA_HEADER.match(header) and folder != "kernels/cuda" and not is_nccl:
                yield f"{relative}:{number}: CUDA header {header} outside kernels/cuda"
            target = "proto" if header.startswith("verbatim/v1/") or header.startswith("proto/") else folder_of(header)
            if header.startswith("tests/") and not is_test:
                yield f"{relative}:{number}: {header}: tests are not for production code"
            if target is None or target == folder or target in ALLOWED[folder]:
                continue
            if is_test and target in TEST_EXTRA:
                continue
            yield f"{relative}:{number}: {folder} may not include {target} ({header})"


def finds_planted_faults():
    """True if a tree with known wrong includes is reported line by line: the check itself can fail."""
    planted = {
        "scheduler/a.h": '#include "kernels/backend.h"\n',
        "kernels/ops/b.h": '#include "kernels/cpu/context.h"\n',
        "engine/c.cc": '#include "server/main.h"\n#include "kernels/backend.h"\n',
        "model/d.cc": "#include <cuda_runtime.h>\n",
        "engine/e.cc": '#include "tests/support.h"\n',
    }
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name, text in planted.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return len(list(wrong_includes(root))) == len(planted)


def main():
    if not finds_planted_faults():
        print("the check does not find planted faults")
        return 1
    root = pathlib.Path(sys.argv[1]).resolve()
    messages = list(wrong_includes(root))
    print("\n".join(messages) if messages else "all includes follow the arrows")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
