"""SmolLM2-135M-Instruct as a reference: its GGUF's weights, tokenizer and chat template."""

import os

import gguf
import jinja2
import numpy as np
import tokenizers
import torch

import reference_checkpoints as checkpoints
import reference_model as reference

CHECKPOINT = os.path.join("models", "SmolLM2-135M-Instruct.Q4_1.gguf")

LONG_TEXT = (
    "Summarise the following notes in three sentences. Day 1: we left the harbour at 06:40 with a light "
    "wind from the north-west and a falling barometer, 1013 hPa at noon, 1009 hPa at dusk. Day 2: rain until "
    "ten, then a clear sky; the second mate repaired the pump, which had lost 3.5 litres an hour since "
    "Tuesday. Day 3: fog. We sounded the horn every two minutes and made 41 miles. Day 4: a whale, perhaps "
    "two, at a distance of half a mile; nobody slept much. Day 5: the wind rose to 28 knots and tore the "
    "small jib. Day 6: we mended the sail, baked bread, and counted what was left: 112 litres of water, "
    "nineteen tins, one sack of rice, coffee for four days. Day 7: land at 15:20, first a grey line, then a "
    "lighthouse with a red band, then roofs. The harbour master asked for papers, smiled and gave us a berth "
    "beside a trawler called \"Élodie\". Nobody said anything for a while.")

CHATS = [
    ("weather", [("user", "Continue the sentence. The sentence: The weather was...")]),
    ("capital", [("user", "What is the capital of France?")]),
    ("code", [("system", "You write short, correct Python."),
              ("user", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n")]),
    ("several_turns", [("user", "My name is Anna and I have 17 apples."),
                       ("assistant", "Nice to meet you, Anna! What will you do with them?"),
                       ("user", "I give 5 away. How many are left?")]),
    ("scripts", [("user", "Translate to English: «Погода была прекрасная» and 「天気は晴れ」 🙂")]),
    ("long_notes", [("user", LONG_TEXT)]),
]


def build_tokenizer(fields) -> tokenizers.Tokenizer:
    """Hugging Face tokenizer from GGUF metadata; pre-tokenizer "smollm" splits digits, then as GPT-2."""
    if fields["tokenizer.ggml.model"].contents() != "gpt2" or fields["tokenizer.ggml.pre"].contents() != "smollm":
        raise ValueError("not the tokenizer this was written for")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def load(path: str):
    """(config, weights, rotary frequencies, [(name, prompt text, ids)])."""
    fields = gguf.GGUFReader(path).fields
    value = lambda key: fields["llama." + key].contents()
    config = {
        "vocab_size": value("vocab_size"), "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"), "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "rope_theta": float(value("rope.freq_base")), "bos_token_id": 1, "eos_token_id": 2,
    }
    weights, factors = checkpoints.gguf_weights(
        path, "llama", config["num_hidden_layers"], config["num_attention_heads"],
        config["num_key_value_heads"], tied=True)
    freqs = reference.frequencies(value("rope.dimension_count"), config["rope_theta"], None, factors)
    tokenizer = build_tokenizer(fields)
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        fields["tokenizer.chat_template"].contents())
    prompts = []
    for name, turns in CHATS:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = template.render(messages=messages, add_generation_prompt=True)
        prompts.append((name, text, tokenizer.encode(text, add_special_tokens=False).ids))
    return config, weights, freqs, prompts
