#!/usr/bin/env python3
"""Writes receipt/testdata/golden.json: a signed receipt in its canonical form.

Independent of the C++ code: JSON, SHA-256 and Ed25519 (RFC 8032) here are Python's standard library and plain integers. With --check it
compares instead of writing.
"""

import hashlib
import json
import pathlib
import struct
import sys

OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "receipt/testdata/golden.json"
SECRET = b"\1" * 32

P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(a, b):
    k = D * a[0] * b[0] * a[1] * b[1] % P
    return ((a[0] * b[1] + b[0] * a[1]) * pow(1 + k, P - 2, P) % P,
            (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, P - 2, P) % P)


def times(n, point):
    result = (0, 1)
    while n:
        if n & 1:
            result = add(result, point)
        point = add(point, point)
        n >>= 1
    return result


def base_point():
    y = 4 * pow(5, P - 2, P) % P
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (P - x if x % 2 else x, y)


def encode(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def expand(secret):
    digest = bytearray(hashlib.sha512(secret).digest())
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    return int.from_bytes(digest[:32], "little"), bytes(digest[32:])


def public_key(secret):
    return encode(times(expand(secret)[0], base_point()))


def sign(secret, message):
    scalar, prefix = expand(secret)
    public = public_key(secret)
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % Q
    commitment = encode(times(r, base_point()))
    challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little") % Q
    return commitment + ((r + challenge * scalar) % Q).to_bytes(32, "little")


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def bits(value):
    return struct.pack(">f", value).hex()


def checksum(name, value):
    return hashlib.sha256(b"verbatim receipt field v1\n" + name.encode() + b"\n" + canonical(value)).hexdigest()[:16]


def golden():
    receipt = {
        "contract_version": 1,
        "finish_reason": "stop",
        "logits_sha256": "c" * 64,
        "model": 'té"st\\ \n',
        "numerics_id": "v1/portable/cpu-tree128/kv-F32",
        "output_token_ids": [5, 6, 7],
        "policy": "pinned",
        "prompt_token_ids": [1, 2, 300, 0],
        "receipt_version": 1,
        "row_fingerprints": [f"{1:016x}{2:016x}", "fedcba98765432100123456789abcdef", "0" * 32],
        "sample_index": 2,
        "sampling": {
            "frequency_penalty": bits(0.25),
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "logit_bias": [[3, bits(-100)], [9, bits(2.5)]],
            "max_tokens": 3,
            "min_p": bits(0.05),
            "min_tokens": 1,
            "n": 4,
            "presence_penalty": bits(-0.5),
            "repetition_penalty": bits(1.1),
            "skip_special_tokens": False,
            "stop": ["\n\n", "end\x01"],
            "stop_token_ids": [2, 7],
            "temperature": bits(0.7),
            "top_k": 40,
            "top_p": bits(0.9),
        },
        "seed": str(0xFFFFFFFFFFFFFFFE),
        "server_version": "0.1.0",
        "stop_reason": "7",
        "tokenizer_sha256": "b" * 64,
        "weights_sha256": "a" * 32 + "0" * 32,
    }
    sums = {key: checksum(key, value) for key, value in receipt.items() if key != "sampling"}
    sums |= {f"sampling.{key}": checksum(f"sampling.{key}", value) for key, value in receipt["sampling"].items()}
    receipt["checksums"] = sums
    key_id = hashlib.sha256(public_key(SECRET)).hexdigest()[:32]
    receipt["signature"] = {"algorithm": "ed25519", "key_id": key_id}
    receipt["signature"]["value"] = sign(SECRET, b"verbatim receipt signature v1\n" + canonical(receipt)).hex()
    return canonical(receipt) + b"\n"


def main():
    if sys.argv[1:] == ["--check"]:
        return 0 if OUTPUT.read_bytes() == golden() else 1
    OUTPUT.write_bytes(golden())
    return 0


if __name__ == "__main__":
    sys.exit(main())
