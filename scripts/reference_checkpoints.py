"""Tiny random checkpoints of every supported family, as Hugging Face directories and as GGUF files.

Everything follows from the seed in `SPECS`: running this twice gives the same bytes. Reading back
(`load_weights`) goes through the files, so a reference is computed from exactly what a file stores.
"""

import dataclasses
import json
import os
import zlib

import gguf
import numpy as np
import safetensors.torch
import torch
from gguf import GGMLQuantizationType as Q

import reference_moe
from reference_moe import Moe

SEED = 20240229
FLOAT_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One checkpoint. `storage` names the type of the matrices; a GGUF's embedding may differ."""

    name: str
    family: str  # llama, mistral, qwen2, qwen3
    container: str  # hf or gguf
    storage: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    theta: float
    eps: float
    embed_storage: str = ""
    rope_scaling: dict | None = None
    shards: int = 1
    # Hugging Face config.json in the style of transformers 5 ("rope_parameters", "dtype").
    new_style_config: bool = False
    # Second type for the v and down matrices, as mixed GGUF recipes have.
    second_storage: str = ""
    max_position: int = 1024
    moe: reference_moe.Moe | None = None
    # Changes the random weights; chosen so that no token's experts hang on a rounding error.
    salt: str = ""


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _gguf_llama(storage: str, **changes) -> Spec:
    fields = dict(
        name=f"gguf_llama_{storage.lower()}", family="llama", container="gguf", storage=storage,
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocab=293,
        tied=True, theta=10000.0, eps=1e-5)
    fields.update(changes)
    return Spec(**fields)


SPECS = [
    Spec("hf_llama_mha", "llama", "hf", "F32", 48, 2, 3, 3, 16, 136, 320, False, 10000.0, 1e-5),
    Spec("hf_llama_gqa_tied_sharded", "llama", "hf", "BF16", 64, 3, 4, 2, 16, 160, 512, True,
         10000.0, 1e-4, shards=2),
    Spec("hf_llama3", "llama", "hf", "BF16", 64, 2, 2, 1, 32, 144, 384, False, 500000.0, 1e-5,
         rope_scaling=LLAMA3_SCALING),
    Spec("hf_llama_linear", "llama", "hf", "F16", 64, 2, 4, 2, 16, 96, 331, True, 20000.0, 1e-3,
         rope_scaling={"rope_type": "linear", "factor": 4.0}, new_style_config=True),
    Spec("hf_mistral", "mistral", "hf", "BF16", 136, 2, 4, 1, 32, 72, 299, True, 1000000.0, 1e-5),
    Spec("hf_qwen2", "qwen2", "hf", "BF16", 64, 2, 4, 2, 16, 160, 401, True, 1000000.0, 1e-6),
    Spec("hf_qwen3", "qwen3", "hf", "BF16", 64, 2, 3, 1, 64, 160, 357, False, 1000000.0, 1e-6),
    _gguf_llama("F32", hidden=32, heads=2, kv_heads=1, intermediate=96, tied=False),
    _gguf_llama("F16"),
    _gguf_llama("BF16", kv_heads=1),
    _gguf_llama("Q8_0"),
    _gguf_llama("Q4_0", embed_storage="Q8_0"),
    _gguf_llama("Q4_1", embed_storage="Q8_0"),
    _gguf_llama("Q5_0", embed_storage="Q5_0"),
    _gguf_llama("Q5_1", embed_storage="Q5_1", tied=False),
    _gguf_llama("Q4_K", hidden=256, heads=4, kv_heads=1, head_dim=64, intermediate=256,
                embed_storage="Q6_K", second_storage="Q6_K"),
    _gguf_llama("Q5_1", name="gguf_llama3_rope_freqs", heads=2, kv_heads=1, head_dim=32,
                theta=500000.0, embed_storage="Q8_0", rope_scaling=LLAMA3_SCALING),
    _gguf_llama("Q4_1", name="gguf_qwen2_q4_1", family="qwen2", theta=1000000.0, eps=1e-6,
                embed_storage="Q8_0"),
    _gguf_llama("Q8_0", name="gguf_qwen3_q8_0", family="qwen3", heads=3, kv_heads=1, head_dim=64,
                theta=1000000.0, eps=1e-6, tied=False),
    Spec("hf_mixtral", "mixtral", "hf", "BF16", 64, 2, 4, 2, 16, 56, 301, False, 1000000.0, 1e-5,
         moe=Moe(4, 2, 56)),
    Spec("hf_qwen2moe", "qwen2moe", "hf", "BF16", 64, 3, 4, 2, 16, 96, 303, True, 1000000.0, 1e-6,
         moe=Moe(6, 2, 24, shared=40, normalise=False, dense=(1,))),
    Spec("hf_qwen3moe", "qwen3moe", "hf", "BF16", 64, 3, 3, 1, 32, 72, 305, False, 1000000.0, 1e-6,
         moe=Moe(8, 3, 24, dense=(0,))),
    Spec("hf_olmoe", "olmoe", "hf", "BF16", 64, 2, 4, 2, 16, 32, 307, False, 10000.0, 1e-5,
         moe=Moe(8, 2, 32, normalise=False)),
    Spec("hf_granitemoe", "granitemoe", "hf", "BF16", 64, 2, 4, 2, 16, 40, 309, False, 10000.0, 1e-6,
         moe=Moe(5, 2, 40, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.6,
                 logits_scaling=1.7)),
    Spec("hf_granitemoeshared", "granitemoeshared", "hf", "F32", 32, 2, 2, 1, 16, 24, 311, False, 10000.0, 1e-6,
         moe=Moe(4, 2, 24, shared=36, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.4,
                 logits_scaling=1.7)),
    _gguf_llama("Q4_1", name="gguf_mixtral_q4_1", family="mixtral", intermediate=64, embed_storage="Q8_0",
                moe=Moe(6, 2, 64)),
    _gguf_llama("Q8_0", name="gguf_qwen2moe_q8_0", family="qwen2moe", intermediate=64, theta=1000000.0, eps=1e-6,
                moe=Moe(4, 2, 32, shared=64, normalise=False), salt="1"),
]


def rng_for(spec_name: str, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([SEED, zlib.crc32(f"{spec_name}/{purpose}".encode())]))


# ---------------------------------------------------------------------------------------------
# Weights


def random_weights(spec: Spec) -> dict[str, np.ndarray]:
    """Weights under Hugging Face names, fp32.

    Scales are chosen so that the model behaves like a trained one where rounding is concerned:
    attention scores spread by about 2 (some positions win, none alone), every block adds about as
    much as the residual stream holds, logits spread by about 3, two residual channels are outliers.
    """
    rng = rng_for(spec.name, "weights" + spec.salt)
    weights = {}

    def matrix(name, rows, cols, gain, merged=0):
        shape = (merged, rows, cols) if merged else (rows, cols)
        weights[name] = (rng.standard_normal(shape) * gain / np.sqrt(cols)).astype(np.float32)

    def norm(name, size):
        weights[name] = (1.0 + 0.2 * rng.standard_normal(size)).astype(np.float32)

    def bias(name, size):
        weights[name] = (0.3 * rng.standard_normal(size)).astype(np.float32)

    q_rows, kv_rows = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    embed = rng.standard_normal((spec.vocab, spec.hidden)) * 3.0 / np.sqrt(spec.hidden)
    embed[:, rng.choice(spec.hidden, 2, replace=False)] *= 3.0
    weights["model.embed_tokens.weight"] = embed.astype(np.float32)
    for i in range(spec.layers):
        p = f"model.layers.{i}."
        norm(p + "input_layernorm.weight", spec.hidden)
        matrix(p + "self_attn.q_proj.weight", q_rows, spec.hidden, 1.4)
        matrix(p + "self_attn.k_proj.weight", kv_rows, spec.hidden, 1.4)
        matrix(p + "self_attn.v_proj.weight", kv_rows, spec.hidden, 1.0)
        matrix(p + "self_attn.o_proj.weight", spec.hidden, q_rows, 1.0)
        if spec.family in ("qwen2", "qwen2moe"):
            bias(p + "self_attn.q_proj.bias", q_rows)
            bias(p + "self_attn.k_proj.bias", kv_rows)
            bias(p + "self_attn.v_proj.bias", kv_rows)
        if spec.family in ("qwen3", "qwen3moe"):
            norm(p + "self_attn.q_norm.weight", spec.head_dim)
            norm(p + "self_attn.k_norm.weight", spec.head_dim)
        if spec.family == "olmoe":
            norm(p + "self_attn.q_norm.weight", q_rows)
            norm(p + "self_attn.k_norm.weight", kv_rows)
        norm(p + "post_attention_layernorm.weight", spec.hidden)
        if spec.moe and i not in spec.moe.dense:
            reference_moe.add_weights(spec.family, spec.moe, spec.hidden, p, matrix)
            continue
        matrix(p + "mlp.gate_proj.weight", spec.intermediate, spec.hidden, 1.2)
        matrix(p + "mlp.up_proj.weight", spec.intermediate, spec.hidden, 1.2)
        matrix(p + "mlp.down_proj.weight", spec.hidden, spec.intermediate, 1.5)
    norm("model.norm.weight", spec.hidden)
    if not spec.tied:
        matrix("lm_head.weight", spec.vocab, spec.hidden, 3.0)
    return weights


# ---------------------------------------------------------------------------------------------
# Tokenizer: byte-level BPE with the 256 byte tokens, merges that fill the vocabulary, 3 specials

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # the expression that defines Qwen2's tokenizer
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
          "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
          "{% endif %}")


def byte_characters() -> list[str]:
    """The printable stand-in of each byte 0..255 in byte-level BPE (GPT-2)."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def tokenizer_parts(vocab: int) -> tuple[list[str], list[str]]:
    """(tokens by id, merges) for a vocabulary of this size."""
    tokens = list(SPECIAL_TOKENS) + byte_characters()
    merges = []
    space = byte_characters()[32]
    letters = "etaoinshrdlu"
    pairs = [(space, c) for c in letters] + [(a, b) for a in letters for b in letters]
    pairs += [(space + a, b) for a in letters for b in letters]
    for left, right in pairs:
        if len(tokens) == vocab:
            break
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    if len(tokens) != vocab:
        raise ValueError(f"vocabulary of {vocab} cannot be filled")
    return tokens, merges


def tokenizer_json(spec: Spec) -> dict:
    tokens, merges = tokenizer_parts(spec.vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if spec.family.startswith("qwen"):
        first = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
        parts = [first, dict(byte_level, use_regex=False)]
    else:
        parts = [{"type": "Digits", "individual_digits": True}, dict(byte_level, use_regex=True)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, t in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": None,
        "decoder": dict(byte_level, use_regex=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }


# ---------------------------------------------------------------------------------------------
# Hugging Face directories


def hf_config(spec: Spec) -> dict:
    architecture, model_type = {
        "llama": ("LlamaForCausalLM", "llama"), "mistral": ("MistralForCausalLM", "mistral"),
        "qwen2": ("Qwen2ForCausalLM", "qwen2"), "qwen3": ("Qwen3ForCausalLM", "qwen3"),
        **reference_moe.ARCHITECTURES}[spec.family]
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(spec.storage, "float32")
    config = {
        "architectures": [architecture], "model_type": model_type,
        "vocab_size": spec.vocab, "hidden_size": spec.hidden, "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads, "max_position_embeddings": spec.max_position,
        "hidden_act": "silu", "rms_norm_eps": spec.eps, "tie_word_embeddings": spec.tied,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": 0, "eos_token_id": 2,
    }
    if spec.head_dim * spec.heads != spec.hidden or spec.family in ("qwen3", "qwen3moe"):
        config["head_dim"] = spec.head_dim
    if spec.family in ("llama", "qwen3", "qwen3moe", "olmoe", "granitemoe", "granitemoeshared"):
        config["attention_bias"] = False
    if spec.family == "llama":
        config["mlp_bias"] = False
    if spec.family == "mistral":
        config["sliding_window"] = None
    if spec.family.startswith("qwen"):
        config.update(use_sliding_window=False, sliding_window=None, max_window_layers=spec.layers)
    if spec.moe:
        config.update(reference_moe.config_fields(spec.family, spec.moe))
    if spec.new_style_config:
        config["dtype"] = dtype
        config["rope_parameters"] = dict(spec.rope_scaling or {"rope_type": "default"}, rope_theta=spec.theta)
    else:
        config["torch_dtype"] = dtype
        config["rope_theta"] = spec.theta
        config["rope_scaling"] = spec.rope_scaling
    return config


def _dump(path: str, value) -> None:
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


def write_hf(spec: Spec, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    dtype = FLOAT_TYPES[spec.storage]
    tensors = {n: torch.from_numpy(w).to(dtype).contiguous() for n, w in random_weights(spec).items()}
    _dump(os.path.join(folder, "config.json"), hf_config(spec))
    _dump(os.path.join(folder, "generation_config.json"), {"bos_token_id": 0, "eos_token_id": [2, 0]})
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer_json(spec), f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    _dump(os.path.join(folder, "tokenizer_config.json"),
          {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "bos_token": None,
           "eos_token": "<|im_end|>", "chat_template": CHATML, "model_max_length": spec.max_position})
    if spec.shards == 1:
        safetensors.torch.save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = -(-len(names) // spec.shards)
    weight_map = {}
    for s in range(spec.shards):
        part = names[s * per_shard:(s + 1) * per_shard]
        file = f"model-{s + 1:05d}-of-{spec.shards:05d}.safetensors"
        safetensors.torch.save_file({n: tensors[n] for n in part}, os.path.join(folder, file),
                                    metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    _dump(os.path.join(folder, "model.safetensors.index.json"),
          {"metadata": {"total_size": total}, "weight_map": weight_map})


# ---------------------------------------------------------------------------------------------
# GGUF files

GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(hf_name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if hf_name in fixed:
        return fixed[hf_name]
    _, _, layer, rest = hf_name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{kind}"


def permute_rows(w: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face row order (first half, second half of a head) to GGUF llama order (pairs)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def unpermute_rows(w: np.ndarray, heads: int) -> np.ndarray:
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).reshape(-1, 1).view(np.uint8)


def random_q4_k(rng: np.random.Generator, rows: int, cols: int, std: float) -> np.ndarray:
    """Random valid Q4_K blocks; value = d*scale*q - dmin*min with q in 0..15, scale and min in 0..63."""
    n = rows * cols // 256
    scales = rng.integers(16, 64, (n, 8), dtype=np.int64)
    mins = np.clip(scales + rng.integers(-3, 4, (n, 8)), 0, 63)
    d = std / (4.61 * 41.0) * rng.uniform(0.7, 1.3, n)
    packed = np.zeros((n, 12), dtype=np.uint8)
    packed[:, 0:4] = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    packed[:, 4:8] = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    packed[:, 8:12] = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    quants = rng.integers(0, 256, (n, 128), dtype=np.uint8)
    return np.concatenate([_half(d), _half(d * 7.5), packed, quants], axis=1).reshape(rows, -1)


def random_q6_k(rng: np.random.Generator, rows: int, cols: int, std: float) -> np.ndarray:
    """Random valid Q6_K blocks; value = d*scale*(q - 32) with q in 0..63 and signed 8-bit scales."""
    n = rows * cols // 256
    scales = (rng.integers(20, 128, (n, 16)) * rng.choice([-1, 1], (n, 16))).astype(np.int8)
    d = std / (18.5 * 78.0) * rng.uniform(0.7, 1.3, n)
    low = rng.integers(0, 256, (n, 128), dtype=np.uint8)
    high = rng.integers(0, 256, (n, 64), dtype=np.uint8)
    return np.concatenate([low, high, scales.view(np.uint8), _half(d)], axis=1).reshape(rows, -1)


def rope_freq_factors(spec: Spec) -> np.ndarray:
    """Divisors of the rotary frequencies that stand for "llama3" scaling in a GGUF, fp32."""
    s = spec.rope_scaling
    freqs = spec.theta ** (-np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    factors = []
    for f in freqs:
        wavelength = 2 * np.pi / f
        smooth = (s["original_max_position_embeddings"] / wavelength - s["low_freq_factor"]) / (
            s["high_freq_factor"] - s["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1.0 / ((1.0 - smooth) / s["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(spec: Spec, path: str) -> None:
    arch = "llama" if spec.family in ("mistral", "mixtral") else spec.family
    rng = rng_for(spec.name, "blocks")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(spec.name)
    writer.add_context_length(spec.max_position)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.intermediate)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    if spec.head_dim * spec.heads != spec.hidden:
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    writer.add_rope_freq_base(spec.theta)
    writer.add_layer_norm_rms_eps(spec.eps)
    if arch == "llama":
        writer.add_vocab_size(spec.vocab)
        writer.add_rope_dimension_count(spec.head_dim)
    if spec.moe:
        reference_moe.add_gguf_keys(writer, spec.family, spec.moe)
    tokens, merges = tokenizer_parts(spec.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if spec.family.startswith("qwen") else "smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIAL_TOKENS else 1 for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    weights = random_weights(spec)
    if spec.moe:
        for name, w in reference_moe.to_gguf(spec.family, spec.moe, spec.layers, weights).items():
            storage = Q.F32 if "_inp" in name else Q[spec.storage]  # routers and gates stay F32
            data = gguf.quants.quantize(w, storage)
            writer.add_tensor(name, data, raw_dtype=storage)
        weights = {n: w for n, w in weights.items() if not reference_moe.is_of_mixture(n)}
    for name, w in weights.items():
        if arch == "llama" and "q_proj" in name:
            w = permute_rows(w, spec.heads)
        if arch == "llama" and "k_proj" in name:
            w = permute_rows(w, spec.kv_heads)
        storage = spec.storage
        if name in ("model.embed_tokens.weight", "lm_head.weight") and spec.embed_storage:
            storage = spec.embed_storage
        if ("v_proj" in name or "down_proj" in name) and spec.second_storage:
            storage = spec.second_storage
        if w.ndim == 1:
            writer.add_tensor(gguf_name(name), w)
        elif storage == "Q4_K":
            writer.add_tensor(gguf_name(name), random_q4_k(rng, *w.shape, float(w.std())), raw_dtype=Q.Q4_K)
        elif storage == "Q6_K":
            writer.add_tensor(gguf_name(name), random_q6_k(rng, *w.shape, float(w.std())), raw_dtype=Q.Q6_K)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(w, Q[storage]), raw_dtype=Q[storage])
    if spec.rope_scaling:
        writer.add_tensor("rope_freqs.weight", rope_freq_factors(spec))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(spec: Spec, root: str) -> str:
    """Writes the checkpoint under `root`; returns its path relative to it."""
    if spec.container == "hf":
        write_hf(spec, os.path.join(root, spec.name))
        return spec.name
    write_gguf(spec, os.path.join(root, spec.name + ".gguf"))
    return spec.name + ".gguf"


# ---------------------------------------------------------------------------------------------
# Reading back


def load_gguf_tensors(path: str) -> dict[str, np.ndarray]:
    """Every tensor at exactly the file's value in fp32.

    For the formats used here d*q is exact in fp32 (an fp16 or fp16*6..8-bit scale times a small
    integer), so `d*q + m` in two operations is one rounding: the same as fma(d, q, m).
    """
    reader = gguf.GGUFReader(path)
    return {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


def hf_names(layers: int, family: str, tied: bool, moe: Moe | None) -> list[str]:
    names = ["model.embed_tokens.weight", "model.norm.weight"] + ([] if tied else ["lm_head.weight"])
    for i in range(layers):
        for stem in GGUF_NAMES:
            if stem.endswith(("q_norm", "k_norm")) and family != "qwen3" or moe and stem.startswith("mlp."):
                continue
            names.append(f"model.layers.{i}.{stem}.weight")
            if family in ("qwen2", "qwen2moe") and stem.endswith(("q_proj", "k_proj", "v_proj")):
                names.append(f"model.layers.{i}.{stem}.bias")
    return names


def gguf_weights(path: str, family: str, layers: int, heads: int, kv_heads: int, tied: bool,
                 moe: Moe | None = None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(weights under Hugging Face names and in their row order, rope_freqs or None)."""
    tensors = load_gguf_tensors(path)
    weights = {}
    if moe:
        weights.update(reference_moe.from_gguf(family, moe, layers, tensors))
    for name in hf_names(layers, family, tied, moe):
        w = tensors.pop(gguf_name(name))
        if family in ("llama", "mistral", "mixtral") and "q_proj" in name:
            w = unpermute_rows(w, heads)
        if family in ("llama", "mistral", "mixtral") and "k_proj" in name:
            w = unpermute_rows(w, kv_heads)
        weights[name] = w
    freqs = tensors.pop("rope_freqs.weight", None)
    if tensors:
        raise ValueError(f"{path}: unused tensors {sorted(tensors)}")
    return weights, freqs


def load_weights(spec: Spec, root: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    if spec.container == "gguf":
        return gguf_weights(os.path.join(root, spec.name + ".gguf"), spec.family, spec.layers, spec.heads,
                            spec.kv_heads, spec.tied, spec.moe)
    folder = os.path.join(root, spec.name)
    weights = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            for name, t in safetensors.torch.load_file(os.path.join(folder, file)).items():
                weights[name] = t.to(torch.float32).numpy()
    return weights, None
