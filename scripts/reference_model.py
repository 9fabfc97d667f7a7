"""The reference forward pass: transformers' own model classes, made to compute in true float64.

transformers upcasts RMSNorm and softmax to float32 and builds rotary tables in float32, whatever
the model's dtype. `build` replaces those three so that a float64 model is float64 throughout. The
same replacement lets the model run in float32 with several orders of summation, in bf16
activations, and with the rounding noise from which tolerances are derived (docs/testing.md).
"""

import contextlib
import functools
import math
import types

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.models.granitemoe import modeling_granitemoe
from transformers.models.granitemoeshared import modeling_granitemoeshared
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.mixtral import modeling_mixtral
from transformers.models.olmoe import modeling_olmoe
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe

import reference_moe

UNIT = 2.0**-24  # unit roundoff of fp32
CHUNK = 128  # leaf of the reduction tree
KV_BLOCK, KV_CUT = 64, 256

MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, modeling_llama),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, modeling_mistral),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, modeling_qwen2),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, modeling_qwen3),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM, modeling_mixtral),
    "qwen2moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM, modeling_qwen2_moe),
    "qwen3moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, modeling_qwen3_moe),
    "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM, modeling_olmoe),
    "granitemoe": (transformers.GraniteMoeConfig, transformers.GraniteMoeForCausalLM, modeling_granitemoe),
    "granitemoeshared": (transformers.GraniteMoeSharedConfig, transformers.GraniteMoeSharedForCausalLM,
                         modeling_granitemoeshared),
}


class Arithmetic:
    """How operations are computed: exact | noise_tree | noise_fold | chunk128 | sequential | bf16.

    "exact" is the plain operation in the model's dtype. "noise_*" adds to every result an
    independent Gaussian of the standard deviation that fp32 rounding has at most (see
    docs/testing.md), for the contract's tree or for a left fold over the whole length.
    """

    def __init__(self, kind: str, seed: int = 0):
        self.kind = kind
        self.noisy = kind.startswith("noise")
        self.generator = torch.Generator().manual_seed(seed)

    def depth(self, k: int) -> int:
        """Roundings on the longest path of a sum of k products."""
        if self.kind == "noise_tree" and k > CHUNK:
            return CHUNK + math.ceil(math.log2(math.ceil(k / CHUNK)))
        return k

    def norm_depth(self, k: int) -> int:
        """Roundings on the longest path of a row reduction (32 lanes)."""
        if self.kind == "noise_tree":
            return math.ceil(min(k, CHUNK) / 32) + math.ceil(math.log2(math.ceil(k / CHUNK))) + 5
        return k

    def kv_depth(self, n: int) -> int:
        if self.kind == "noise_tree":
            return min(n, KV_BLOCK) + min(math.ceil(n / KV_BLOCK), KV_CUT // KV_BLOCK) + math.ceil(n / KV_CUT)
        return n

    def product(self, x: torch.Tensor, w: torch.Tensor, rounds: bool = True) -> torch.Tensor:
        """x · wᵀ in this kind's order of summation, without noise; bf16 in and out where it `rounds`."""
        if self.kind == "bf16":
            y = F.linear(_bf16(x), w)
            return _bf16(y) if rounds else y
        k = w.shape[1]
        if self.kind == "chunk128":
            return _tree_add([F.linear(x[..., i:i + CHUNK], w[:, i:i + CHUNK]) for i in range(0, k, CHUNK)])
        if self.kind == "sequential":
            y, wt = torch.zeros(*x.shape[:-1], w.shape[0], dtype=x.dtype), w.t().contiguous()
            for i in range(k):
                y.addcmul_(x[..., i:i + 1], wt[i])
            return y
        return F.linear(x, w)

    def rounded(self, y: torch.Tensor) -> torch.Tensor:
        return _bf16(y) if self.kind == "bf16" else y

    def jitter(self, y: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return y + std * torch.randn(y.shape, generator=self.generator, dtype=y.dtype)


_arithmetic: Arithmetic | None = None  # None: transformers as it comes
_routing: list[torch.Tensor] | None = None  # receives the routers' logits [tokens, experts] of each layer


def _scaled_embedding(original, self, ids: torch.Tensor) -> torch.Tensor:
    x, a = original(ids), _arithmetic
    if a is None or not a.noisy:
        return x
    return a.jitter(x, UNIT * math.sqrt(2) * x.abs())  # the factor and the product are rounded


@contextlib.contextmanager
def arithmetic(kind: str, seed: int = 0):
    global _arithmetic
    _arithmetic = Arithmetic(kind, seed)
    try:
        yield
    finally:
        _arithmetic = None


def _bf16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def _tree_add(parts: list[torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    left = (len(parts) + 1) // 2
    return _tree_add(parts[:left]) + _tree_add(parts[left:])


def _linear(self, x: torch.Tensor) -> torch.Tensor:
    a, w, k = _arithmetic, self.weight, self.weight.shape[1]
    if a.kind == "bf16":
        y = _bf16(F.linear(_bf16(x), w, self.bias))
        return y.float() if self.role == "lm_head" else y
    if a.kind in ("chunk128", "sequential"):
        y = a.product(x, w)
        return y if self.bias is None else y + self.bias
    if a.noisy:
        if self.role == "down_proj":  # x = silu(gate) * up: sigmoid within 2 ulp, two multiplies
            x = a.jitter(x, UNIT * math.sqrt(6) * x.abs())
        if self.squares is None:
            self.squares = w * w
        y = F.linear(x, w)
        variance = a.depth(k) * (F.linear(x * x, self.squares) + y * y)
        if self.bias is not None:
            y = y + self.bias
            variance = variance + y * y
        if self.role in ("o_proj", "down_proj"):  # the addition to the residual stream
            m = getattr(self.layer, "residual_multiplier", 1.0)  # Granite's stream is divided by it
            variance = variance + ((self.layer.residual + m * y) / m) ** 2
        return a.jitter(y, UNIT * variance.sqrt())
    return F.linear(x, w, self.bias)


def _rms_norm(self, x: torch.Tensor) -> torch.Tensor:
    a, k = _arithmetic, x.shape[-1]
    if self.layer is not None:
        self.layer.residual = x
    if a.kind == "bf16":
        x = _bf16(x)
    if a.kind == "chunk128":
        mean = _tree_add([x[..., i:i + CHUNK].pow(2).sum(-1, keepdim=True) for i in range(0, k, CHUNK)]) / k
    elif a.kind == "sequential":
        mean = x.pow(2).cumsum(-1)[..., -1:] / k
    else:
        mean = x.pow(2).mean(-1, keepdim=True)
    scale = torch.rsqrt(mean + self.variance_epsilon)
    if a.noisy:  # mean, epsilon, rsqrt within 2 ulp; the sum's relative error counts by half
        scale = a.jitter(scale, UNIT * math.sqrt(0.25 * (a.norm_depth(k) + 3) + 4) * scale)
        y = x * scale * self.weight
        # The division of Granite's logits is folded into the last norm's weights: a rounding of each.
        return a.jitter(y, UNIT * math.sqrt(2 + self.folds) * y.abs())
    return x * scale * self.weight


def _rotary(self, x: torch.Tensor, position_ids: torch.Tensor):
    """cos and sin of float64 angles, rounded once to the model's dtype."""
    angles = position_ids[..., None].double() * self.frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _attention(original, module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    a = _arithmetic
    if a is None:
        return original(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    half = query.shape[-1] // 2
    if a.kind == "bf16":
        query, key, value = _bf16(query), _bf16(key), _bf16(value)
    if a.noisy:  # rotation: two products, a sum, table entries within 1 ulp
        def rotated(x):
            pair = (x[..., :half].square() + x[..., half:].square()).sqrt()
            return a.jitter(x, UNIT * math.sqrt(5) * torch.cat((pair, pair), dim=-1))
        query, key = rotated(query), rotated(key)
    groups = module.num_key_value_groups
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if a.noisy:
        squares = torch.matmul(query.square(), key.square().transpose(2, 3)) * scaling**2
        scores = a.jitter(scores, UNIT * (a.depth(query.shape[-1]) * (squares + scores**2) + scores**2).sqrt())
    if attention_mask is not None:
        scores = scores + attention_mask
    shifted = scores - scores.amax(-1, keepdim=True)
    if a.kind == "bf16":
        output = torch.matmul(_bf16(torch.softmax(shifted, dim=-1)), value)
        return _bf16(output).transpose(1, 2).contiguous(), None
    weights = shifted.exp()
    n = weights.shape[-1]
    if a.noisy:  # exp within 2 ulp, its argument rounded once, one rescaling a block and a cut
        rescales = math.ceil(n / KV_BLOCK) + math.ceil(n / KV_CUT)
        weights = a.jitter(weights, UNIT * weights * (4 + rescales + shifted.clamp(min=-100) ** 2).sqrt())
    total = weights.sum(-1, keepdim=True)
    if a.kind == "chunk128":
        output = _tree_add([torch.matmul(weights[..., i:i + CHUNK], value[..., i:i + CHUNK, :])
                            for i in range(0, n, CHUNK)])
    elif a.kind == "sequential":
        output = torch.zeros_like(query)
        for i in range(n):
            output = output + weights[..., i:i + 1] * value[..., i:i + 1, :]
    else:
        output = torch.matmul(weights, value)
    if a.noisy:
        depth = a.kv_depth(n)
        total = a.jitter(total, UNIT * (depth * (weights.square().sum(-1, keepdim=True) + total**2)).sqrt())
        squares = torch.matmul(weights.square(), value.square())
        output = a.jitter(output, UNIT * (depth * (squares + output**2)).sqrt())
        output = output / total
        return a.jitter(output, UNIT * output.abs()).transpose(1, 2).contiguous(), None
    return (output / total).transpose(1, 2).contiguous(), None


def _patch_attention() -> None:
    for _, _, module in MODELS.values():
        original = module.eager_attention_forward
        if getattr(original, "verbatim", False):
            continue

        def patched(*args, original=original, **kwargs):
            return _attention(original, *args, **kwargs)

        patched.verbatim = True
        module.eager_attention_forward = patched


def frequencies(head_dim: int, theta: float, scaling: dict | None, factors: np.ndarray | None) -> torch.Tensor:
    """Rotary frequencies [head_dim / 2] in float64, with linear or llama3 scaling or given divisors."""
    freqs = torch.tensor(theta, dtype=torch.float64) ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if factors is not None:
        return freqs / torch.from_numpy(factors.astype(np.float64))
    if scaling is None:
        return freqs
    if scaling["rope_type"] == "linear":
        return freqs / scaling["factor"]
    if scaling["rope_type"] != "llama3":
        raise ValueError(f"rope_type {scaling['rope_type']}")
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * freqs / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * freqs / scaling["factor"] + smooth * freqs


def build(family: str, config: dict, weights: dict[str, np.ndarray], freqs: torch.Tensor,
          dtype: torch.dtype, moe: reference_moe.Moe | None = None) -> torch.nn.Module:
    """A model of transformers' class with these weights, computing in `dtype` throughout."""
    _patch_attention()
    config_class, model_class, _ = MODELS[family]
    fields = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype", "architectures")}
    hf = config_class(**fields, attn_implementation="eager")
    with torch.device("meta"):
        model = model_class(hf)
    state = {n: torch.from_numpy(w).to(dtype) for n, w in weights.items()}
    if hf.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    mixtures = {}
    for i in range(hf.num_hidden_layers if moe else 0):
        if i not in moe.dense:
            mixtures[i] = reference_moe.Mixture(family, moe, f"model.layers.{i}.", state)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    of_mixtures = ("block_sparse_moe.", "shared_mlp.", "mlp.gate.", "mlp.experts.", "mlp.shared_expert")
    missing = [n for n in missing if not any(f".{int(n.split('.')[2])}.{part}" in n and int(n.split(".")[2]) in mixtures
                                             for part in of_mixtures)]
    if missing or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.requires_grad_(False)
    model.eval()
    rotary = model.model.rotary_emb
    rotary.frequencies = freqs
    rotary.forward = types.MethodType(_rotary, rotary)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.role, module.squares, module.layer = name.rsplit(".", 1)[-1], None, None
            module.forward = types.MethodType(_linear, module)
        elif type(module).__name__.endswith("RMSNorm"):
            module.layer, module.folds = None, 0
            module.forward = types.MethodType(_rms_norm, module)
    for i, layer in enumerate(model.model.layers):
        # Plain attributes set around nn.Module's registration: the layer is not a child of its parts.
        parts = [layer.self_attn.o_proj, layer.input_layernorm, layer.post_attention_layernorm]
        for part in parts + ([] if i in mixtures else [layer.mlp.down_proj]):
            object.__setattr__(part, "layer", layer)
    if mixtures:
        reference_moe.install(model, family, moe, mixtures, lambda: _arithmetic, lambda: _routing)
    if family.startswith("granite"):
        model.model.norm.folds = 1
        embed = model.model.embed_tokens
        embed.forward = types.MethodType(functools.partial(_scaled_embedding, embed.forward), embed)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, ids: list[int], kind: str, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """[batch, tokens, vocab] in float64; every row of the batch is the same prompt."""
    with arithmetic(kind, seed):
        out = model(torch.tensor([ids] * batch), use_cache=False).logits
    return out.double()


@torch.no_grad()
def router_logits(model: torch.nn.Module, ids: list[int], kind: str, seed: int = 0) -> list[torch.Tensor]:
    """[tokens, experts] of each layer that is a mixture."""
    global _routing
    _routing = []
    try:
        with arithmetic(kind, seed):
            model(torch.tensor([ids]), use_cache=False)
        return _routing
    finally:
        _routing = None


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], steps: int) -> list[int]:
    """The next `steps` tokens at temperature 0, end-of-text tokens included, ties to the lower id."""
    cache, inputs, out = transformers.DynamicCache(config=model.config), list(ids), []
    with arithmetic("exact"):
        for _ in range(steps):
            row = model(torch.tensor([inputs]), past_key_values=cache, use_cache=True).logits[0, -1]
            token = int(torch.argmax(row))
            out.append(token)
            inputs = [token]
    return out
