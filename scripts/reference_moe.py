"""Mixtures of experts in the reference: their weights, files, and forward pass.

The forward pass of a mixture stands here rather than in transformers because its classes compute the
router's softmax in float32 whatever the model's dtype; that unchanged transformers gets the same
logits in float32 is checked for every checkpoint.
"""

import dataclasses
import math
import types

import numpy as np
import torch
import torch.nn.functional as F

UNIT = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Moe:
    """The mixture of a checkpoint. `dense` are the layers that have an ordinary MLP."""

    experts: int
    top_k: int
    inner: int
    shared: int = 0
    normalise: bool = True
    dense: tuple[int, ...] = ()
    # Granite
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 0.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0


ARCHITECTURES = {
    "mixtral": ("MixtralForCausalLM", "mixtral"),
    "qwen2moe": ("Qwen2MoeForCausalLM", "qwen2_moe"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "olmoe": ("OlmoeForCausalLM", "olmoe"),
    "granitemoe": ("GraniteMoeForCausalLM", "granitemoe"),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", "granitemoeshared"),
}


def config_fields(family: str, moe: Moe) -> dict:
    """What config.json says beyond a dense model of the same size."""
    local = family == "mixtral" or family.startswith("granite")
    fields = {"num_local_experts" if local else "num_experts": moe.experts,
              "num_experts_per_tok": moe.top_k, "output_router_logits": False, "router_aux_loss_coef": 0.001}
    if not local:
        fields["norm_topk_prob"] = moe.normalise
    if family in ("qwen2moe", "qwen3moe"):
        fields.update(moe_intermediate_size=moe.inner, decoder_sparse_step=1, mlp_only_layers=list(moe.dense))
    else:
        fields["intermediate_size"] = moe.inner
    if family == "qwen2moe":
        fields["shared_expert_intermediate_size"] = moe.shared
    if family == "mixtral":
        fields.update(router_jitter_noise=0.0, sliding_window=None)
    if family == "olmoe":
        fields["clip_qkv"] = None
    if family.startswith("granite"):
        fields.update(embedding_multiplier=moe.embedding_multiplier, attention_multiplier=moe.attention_multiplier,
                      residual_multiplier=moe.residual_multiplier, logits_scaling=moe.logits_scaling)
    if family == "granitemoeshared":
        fields["shared_intermediate_size"] = moe.shared
    return fields


def add_weights(family: str, moe: Moe, hidden: int, prefix: str, matrix) -> None:
    """Weights of one layer's mixture, under the names that released checkpoints have.

    `matrix(name, rows, cols, gain, merged)` makes a matrix, or `merged` of them as one tensor.
    """
    if family.startswith("granite"):
        p = prefix + "block_sparse_moe."
        matrix(p + "router.layer.weight", moe.experts, hidden, 2.0, 0)
        matrix(p + "input_linear.weight", 2 * moe.inner, hidden, 1.2, moe.experts)
        matrix(p + "output_linear.weight", hidden, moe.inner, 2.0, moe.experts)
        if moe.shared:
            matrix(prefix + "shared_mlp.input_linear.weight", 2 * moe.shared, hidden, 1.2, 0)
            matrix(prefix + "shared_mlp.output_linear.weight", hidden, moe.shared, 1.5, 0)
        return
    p = prefix + ("block_sparse_moe." if family == "mixtral" else "mlp.")
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    matrix(p + "gate.weight", moe.experts, hidden, 2.0, 0)
    for e in range(moe.experts):
        matrix(f"{p}experts.{e}.{gate}.weight", moe.inner, hidden, 1.2, 0)
        matrix(f"{p}experts.{e}.{up}.weight", moe.inner, hidden, 1.2, 0)
        matrix(f"{p}experts.{e}.{down}.weight", hidden, moe.inner, 2.0, 0)
    if moe.shared:
        matrix(p + "shared_expert.gate_proj.weight", moe.shared, hidden, 1.2, 0)
        matrix(p + "shared_expert.up_proj.weight", moe.shared, hidden, 1.2, 0)
        matrix(p + "shared_expert.down_proj.weight", hidden, moe.shared, 1.5, 0)
        matrix(p + "shared_expert_gate.weight", 1, hidden, 1.0, 0)


# ---------------------------------------------------------------------------------------------
# GGUF: experts of a layer are merged into one tensor each of gate, up and down


def to_gguf(family: str, moe: Moe, layers: int, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mixtures' weights under GGUF names."""
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for i in range(layers):
        p = f"model.layers.{i}." + ("block_sparse_moe." if family == "mixtral" else "mlp.")
        out[f"blk.{i}.ffn_gate_inp.weight"] = weights[p + "gate.weight"]
        for stem, name in ((gate, "gate"), (up, "up"), (down, "down")):
            out[f"blk.{i}.ffn_{name}_exps.weight"] = np.stack(
                [weights[f"{p}experts.{e}.{stem}.weight"] for e in range(moe.experts)])
            if moe.shared:
                out[f"blk.{i}.ffn_{name}_shexp.weight"] = weights[f"{p}shared_expert.{stem}.weight"]
        if moe.shared:
            out[f"blk.{i}.ffn_gate_inp_shexp.weight"] = weights[p + "shared_expert_gate.weight"][0]
    return out


def is_of_mixture(name: str) -> bool:
    return "block_sparse_moe." in name or any(p in name for p in ("mlp.gate.", "mlp.experts.", "mlp.shared_expert"))


def from_gguf(family: str, moe: Moe, layers: int, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the mixtures' tensors out of `tensors`; the inverse of to_gguf."""
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for i in range(layers):
        p = f"model.layers.{i}." + ("block_sparse_moe." if family == "mixtral" else "mlp.")
        out[p + "gate.weight"] = tensors.pop(f"blk.{i}.ffn_gate_inp.weight")
        for stem, name in ((gate, "gate"), (up, "up"), (down, "down")):
            for e, w in enumerate(tensors.pop(f"blk.{i}.ffn_{name}_exps.weight")):
                out[f"{p}experts.{e}.{stem}.weight"] = w
            if moe.shared:
                out[f"{p}shared_expert.{stem}.weight"] = tensors.pop(f"blk.{i}.ffn_{name}_shexp.weight")
        if moe.shared:
            out[p + "shared_expert_gate.weight"] = tensors.pop(f"blk.{i}.ffn_gate_inp_shexp.weight")[None]
    return out


def add_gguf_keys(writer, family: str, moe: Moe) -> None:
    writer.add_expert_count(moe.experts)
    writer.add_expert_used_count(moe.top_k)
    if family != "mixtral":
        writer.add_expert_feed_forward_length(moe.inner)
    if moe.shared:
        writer.add_expert_shared_feed_forward_length(moe.shared)


# ---------------------------------------------------------------------------------------------
# The forward pass


class Mixture:
    """One layer's weights, taken from a checkpoint's names."""

    def __init__(self, family: str, moe: Moe, prefix: str, weights: dict[str, torch.Tensor]):
        self.moe = moe
        granite = family.startswith("granite")
        p = prefix + ("block_sparse_moe." if granite or family == "mixtral" else "mlp.")
        self.shared_gate = None
        if granite:
            self.router = weights.pop(p + "router.layer.weight")
            self.gate_up = weights.pop(p + "input_linear.weight")
            self.down = weights.pop(p + "output_linear.weight")
            if moe.shared:
                self.shared = (weights.pop(prefix + "shared_mlp.input_linear.weight"),
                               weights.pop(prefix + "shared_mlp.output_linear.weight"))
        else:
            gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            take = lambda e, stem: weights.pop(f"{p}experts.{e}.{stem}.weight")
            self.router = weights.pop(p + "gate.weight")
            self.gate_up = [torch.cat((take(e, gate), take(e, up))) for e in range(moe.experts)]
            self.down = [take(e, down) for e in range(moe.experts)]
            if moe.shared:
                s = p + "shared_expert."
                self.shared = (torch.cat((weights.pop(s + "gate_proj.weight"), weights.pop(s + "up_proj.weight"))),
                               weights.pop(s + "down_proj.weight"))
                self.shared_gate = weights.pop(p + "shared_expert_gate.weight")
        self.squares = {}

    def product(self, a, x: torch.Tensor, w: torch.Tensor, key, rounds: bool = True) -> torch.Tensor:
        """x · wᵀ with the errors of the arithmetic `a`; `rounds`: it is a bf16 product where there are such."""
        y = a.product(x, w, rounds)
        if a.noisy:
            if key not in self.squares:
                self.squares[key] = w * w
            y = a.jitter(y, UNIT * (a.depth(w.shape[1]) * (F.linear(x * x, self.squares[key]) + y * y)).sqrt())
        return y

    def network(self, a, x, gate_up, down, key) -> torch.Tensor:
        gate, up = self.product(a, x, gate_up, (key, 0)).chunk(2, dim=-1)
        inner = F.silu(gate) * up
        if a.noisy:  # sigmoid within 2 ulp, two multiplications
            inner = a.jitter(inner, UNIT * math.sqrt(6) * inner.abs())
        return self.product(a, inner, down, (key, 1))

    def weigh(self, a, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights, experts), [tokens, top_k] in rank order."""
        top, experts = torch.topk(logits, self.moe.top_k, dim=-1)
        shifted = (top if self.moe.normalise else logits) - logits.amax(-1, keepdim=True)
        e = shifted.exp()
        if a.noisy:  # exp within 2 ulp, its argument rounded once
            e = a.jitter(e, UNIT * e * (4 + shifted**2).sqrt())
        total = e.sum(-1, keepdim=True)
        if a.noisy:
            n = e.shape[-1]
            depth = n if self.moe.normalise else a.norm_depth(n)
            total = a.jitter(total, UNIT * (depth * (e.square().sum(-1, keepdim=True) + total**2)).sqrt())
        weights = (e if self.moe.normalise else e.gather(-1, experts)) / total
        return (a.jitter(weights, UNIT * weights) if a.noisy else weights), experts

    def forward(self, a, x: torch.Tensor, residual: torch.Tensor, multiplier: float, record) -> torch.Tensor:
        """x, residual [tokens, hidden]; what the layer adds, before Granite's multiplier."""
        logits = self.product(a, x, self.router, "router", rounds=False)
        if record is not None:
            record.append(logits)
        weights, experts = self.weigh(a, logits)
        rows = torch.zeros(*experts.shape, x.shape[-1], dtype=x.dtype)
        for e in range(self.moe.experts):
            tokens, slots = torch.where(experts == e)
            if len(tokens):
                rows[tokens, slots] = self.network(a, x[tokens], self.gate_up[e], self.down[e], e)
        terms = weights[..., None] * rows
        if self.moe.shared:
            shared = self.network(a, x, *self.shared, "shared")
            if self.shared_gate is not None:
                gate = torch.sigmoid(self.product(a, x, self.shared_gate, "shared_gate", rounds=False))
                shared = (a.jitter(gate, UNIT * 2.5 * gate) if a.noisy else gate) * shared
            terms = torch.cat((terms, shared[:, None]), dim=1)
        y = terms.sum(1)
        if a.noisy:  # an FMA a term, then the addition to the residual stream
            variance = terms.shape[1] * (terms.square().sum(1) + y * y)
            variance = variance + ((residual + multiplier * y) / multiplier) ** 2
            y = a.jitter(y, UNIT * variance.sqrt())
        return a.rounded(y)


def install(model, family: str, moe: Moe, mixtures: dict[int, Mixture], arithmetic, record) -> None:
    """Lets the model's layers compute their mixtures as above. `arithmetic()` and `record()` give what is in force."""
    for i, mixture in mixtures.items():
        layer = model.model.layers[i]
        block = layer.block_sparse_moe if family.startswith("granite") else layer.mlp

        def forward(self, x, mixture=mixture, layer=layer):
            flat, residual = x.reshape(-1, x.shape[-1]), layer.residual.reshape(-1, x.shape[-1])
            y = mixture.forward(arithmetic(), flat, residual, moe.residual_multiplier, record())
            return y.reshape(x.shape)

        block.forward = types.MethodType(forward, block)
        if getattr(layer, "shared_mlp", None) is not None:  # part of the mixture above
            layer.shared_mlp.forward = types.MethodType(lambda self, x: torch.zeros_like(x), layer.shared_mlp)


def smallest_gap(exact: list[torch.Tensor], noisy: list[list[torch.Tensor]], top_k: int) -> float:
    """How far the chosen experts are from the others, in standard deviations of a logit's rounding error.

    `exact` are logits [tokens, experts] by layer, `noisy` the same of several runs.
    """
    worst = math.inf
    for i, logits in enumerate(exact):
        if logits.shape[-1] == top_k:
            continue
        errors = torch.stack([run[i].reshape(-1, *logits.shape) - logits for run in noisy])
        sigma = errors.square().mean((0, 1)).sqrt().amax(-1)
        ordered = logits.sort(-1, descending=True).values
        worst = min(worst, float(((ordered[:, top_k - 1] - ordered[:, top_k]) / sigma).min()))
    return worst
