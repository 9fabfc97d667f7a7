#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizers: strings in many scripts, tokenizers trained on them, and what Hugging Face
`tokenizers` and Jinja make of them.

Needs: pip install tokenizers gguf jinja2. Usage: make_tokenizer_fixtures.py [--model SmolLM2.gguf]
The output depends on the seed in this file and the versions of those packages only.
"""

import argparse
import collections
import json
import random
from pathlib import Path

from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import chat_template_fixtures
import tokenizer_corpus

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "tokenizers"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
METASPACE = "\u2581"


def dump(name, obj):
    text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
    (OUT / name).write_text(text + "\n", encoding="utf-8")


def dump_lines(name, items):
    lines = (json.dumps(i, ensure_ascii=False, separators=(",", ":")) for i in items)
    (OUT / name).write_text("".join(l + "\n" for l in lines), encoding="utf-8")


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def byte_level_alphabet():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def alphabet_of(corpus, size):
    """The most frequent characters. Left to itself the trainer breaks ties by the order of a hash map."""
    counts = collections.Counter(c for text in corpus for c in text)
    return [c for c, _ in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:size]]


def train_byte_level(corpus, pattern, normalizer, vocab_size, alphabet, specials):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([special(s) for s in specials])
    return tokenizer


def make_llama3(corpus):
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = train_byte_level(corpus, split, None, 2000, byte_level_alphabet(), specials)
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
            ),
        ]
    )
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(data))


def make_qwen2(corpus):
    split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_byte_level(corpus, split, normalizers.NFC(), 2000, byte_level_alphabet(), specials)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_digits(corpus):
    """ByteLevel's own pattern after digits, a leading space, and a vocabulary that lacks bytes (as SmolLM2's does)."""
    alphabet = [c for c in byte_level_alphabet() if c not in "#$%&@^~\u0100\u0101\u0102\u00f1\u00f2"]
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, limit_alphabet=len(alphabet), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=True),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
        ]
    )
    return tokenizer


def train_pieces(corpus, vocab_size, alphabet_size):
    """Pieces in the order of their training, characters last, as SentencePiece lists them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(METASPACE), normalizers.Replace(" ", METASPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(METASPACE, behavior="merged_with_next")
    alphabet = alphabet_of([t.replace(" ", METASPACE) for t in corpus], alphabet_size)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, limit_alphabet=alphabet_size, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])
    words = [p for p, _ in pieces if len(p) > 1]
    return words + [p for p, _ in pieces if len(p) == 1]


def merges_of(pieces, ids):
    """Every cut of every piece in two pieces, in the order of the pieces: the rule by which scores become merges."""
    merges = []
    for piece in pieces:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        merges += sorted(cuts, key=lambda c: (ids[c[0]], ids[c[1]]))
    return merges


def make_sentencepiece(corpus):
    pieces = train_pieces(corpus, 1700, 250)
    control = ["<unk>", "<s>", "</s>"]
    tokens = control + [f"<0x{b:02X}>" for b in range(256)]
    pieces = [p for p in pieces if p not in tokens]
    tokens += pieces
    ids = {t: i for i, t in enumerate(tokens)}
    piece_ids = {p: ids[p] for p in pieces}
    model = models.BPE(
        vocab=ids, merges=merges_of(pieces, piece_ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(METASPACE), normalizers.Replace(" ", METASPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([special(c) for c in control])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write_sentencepiece_gguf(tokens, len(control))
    return tokenizer


def write_sentencepiece_gguf(tokens, controls):
    writer = GGUFWriter(OUT / "sentencepiece.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t.encode() for t in tokens])
    writer.add_token_scores([0.0] * (controls + 256) + [-float(i) for i in range(len(tokens) - controls - 256)])
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * (controls - 1) + [TokenType.BYTE] * 256
    writer.add_token_types(types + [TokenType.NORMAL] * (len(tokens) - len(types)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish_gguf(writer)


def write_byte_level_gguf(name, tokenizer, pre, bos, eos):
    data = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    added = {t["id"]: t for t in data["added_tokens"]}
    types = [
        TokenType.NORMAL if i not in added else TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        for i in range(size)
    ]
    writer = GGUFWriter(OUT / name, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([t.encode() for t in tokens])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in data["model"]["merges"]])
    if bos is not None:
        writer.add_bos_token_id(tokenizer.token_to_id(bos))
    writer.add_eos_token_id(tokenizer.token_to_id(eos))
    finish_gguf(writer)


def finish_gguf(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_metaspace(corpus):
    """A Metaspace pre-tokenizer, unknown tokens instead of bytes, and added tokens with every flag."""
    pieces = train_pieces(corpus, 700, 120)
    tokens = ["<unk>", "<s>", "</s>"]
    pieces = [p for p in pieces if p not in tokens]
    tokens += pieces
    ids = {t: i for i, t in enumerate(tokens)}
    merges = merges_of(pieces, {p: ids[p] for p in pieces})
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=METASPACE, prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement=METASPACE, prepend_scheme="first", split=True)
    tokenizer.add_special_tokens([special("<unk>"), special("<s>", rstrip=True), special("</s>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def smollm2_from_gguf(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special(t) for t, kind in zip(tokens, types) if kind == TokenType.CONTROL])
    return tokenizer


def expectations(tokenizer, strings):
    """First what add_special_tokens adds, then a line a string: its ids; and, where they differ from the plain case, the
    decoded text with ("decoded") and without ("skipped") special tokens and the ids with special tokens as text ("plain")."""
    affixes = tokenizer.encode("").ids
    prefix = affixes if len(affixes) < 2 else affixes[:1]
    suffix = affixes[len(prefix) :]
    lines = [{"prefix": prefix, "suffix": suffix}]
    for text in strings:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).ids == prefix + ids + suffix
        line = {"ids": ids}
        kept = tokenizer.decode(ids, skip_special_tokens=False)
        if kept != text:
            line["decoded"] = kept
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        if skipped != kept:
            line["skipped"] = skipped
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        if plain != ids:
            line["plain"] = plain
        lines.append(line if len(line) > 1 else ids)
    return lines


def random_decodes(tokenizer, rng, excluded):
    """Ids drawn at random: bytes that fit no character, special tokens in the middle of characters."""
    ids = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(i) not in excluded]
    short = [i for i in ids if len(tokenizer.id_to_token(i)) <= 2]
    lines = []
    for _ in range(300):
        drawn = [rng.choice(short if rng.random() < 0.7 else ids) for _ in range(rng.randint(1, 12))]
        lines.append([drawn, tokenizer.decode(drawn, skip_special_tokens=False)])
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20240613)
    raw = tokenizer_corpus.make_strings(rng)
    strings = [s if isinstance(s, str) else s.decode("utf-8", errors="replace") for s in raw]
    dump_lines("strings.jsonl", [r if isinstance(r, str) else {"hex": r.hex(), "text": s} for r, s in zip(raw, strings)])

    tokenizers = {
        "llama3": make_llama3(strings),
        "qwen2": make_qwen2(strings),
        "digits": make_digits(strings),
        "sentencepiece": make_sentencepiece(strings),
        "metaspace": make_metaspace(strings),
    }
    for name, tokenizer in tokenizers.items():
        dump(f"{name}.tokenizer.json", json.loads(tokenizer.to_str()))
    write_byte_level_gguf("llama3.gguf", tokenizers["llama3"], "llama-bpe", "<|begin_of_text|>", "<|end_of_text|>")
    write_byte_level_gguf("qwen2.gguf", tokenizers["qwen2"], "qwen2", None, "<|endoftext|>")
    dump("chat_templates.json", chat_template_fixtures.make())
    tokenizers["smollm2"] = smollm2_from_gguf(args.model)

    byte_tokens = {f"<0x{b:02X}>" for b in range(256)}
    for name, tokenizer in tokenizers.items():
        dump_lines(f"{name}.expected.jsonl", expectations(tokenizer, strings))
        dump_lines(f"{name}.decode.jsonl", random_decodes(tokenizer, rng, byte_tokens))
    print(f"{len(strings)} strings, {sum(f.stat().st_size for f in OUT.iterdir()) / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
