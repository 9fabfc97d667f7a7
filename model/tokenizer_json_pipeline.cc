// Normalizer, pre-tokenizer, post-processor and decoder of tokenizer.json.
// Source of the fields' meaning: the serialized forms of Hugging Face tokenizers 0.15 to 0.23.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/tokenizer_json.h"

namespace verbatim::model {
namespace {

// A pattern is {"String": literal} or {"Regex": expression}; a bare string is a literal in old
// files.
void ReadPattern(const JsonField& field, bool* literal, std::string* pattern) {
  *literal = true;
  if (field.value().is_string()) {
    *pattern = field.String();
  } else {
    field.AllowKeys({"String", "Regex"});
    *literal = field.Has("String");
    *pattern = field[*literal ? "String" : "Regex"].String();
  }
  if (pattern->empty()) field.Fail("an empty pattern");
}

SplitBehavior ReadBehavior(const JsonField& field) {
  const std::string name = field.String();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  field.Fail(absl::StrCat("unknown behavior \"", name, "\""));
  return SplitBehavior::kIsolated;
}

PreTokenizerStep Split(std::string pattern, SplitBehavior behavior, bool literal = false) {
  PreTokenizerStep step;
  step.pattern = std::move(pattern);
  step.literal = literal;
  step.behavior = behavior;
  return step;
}

struct Metaspace {
  std::string replacement;
  std::string scheme;  // "always", "first", "never"
  bool split;
};

Metaspace ReadMetaspace(const JsonField& field) {
  field.AllowKeys(
      {"type", "replacement", "str_rep", "add_prefix_space", "prepend_scheme", "split"});
  Metaspace result;
  result.replacement = field["replacement"].String();
  result.scheme =
      field.StringOr("prepend_scheme", field.BoolOr("add_prefix_space", true) ? "always" : "never");
  result.split = field.BoolOr("split", true);
  if (result.scheme != "always" && result.scheme != "first" && result.scheme != "never") {
    field["prepend_scheme"].Fail(absl::StrCat("unknown scheme \"", result.scheme, "\""));
  }
  if (result.replacement != "\xE2\x96\x81") field["replacement"].Fail("only U+2581 is supported");
  return result;
}

void ReadByteLevel(const JsonField& field, TokenizerSpec* spec) {
  field.AllowKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (field.BoolOr("add_prefix_space", true)) {
    PreTokenizerStep step;
    step.kind = PreTokenizerStep::Kind::kAddPrefix;
    step.pattern = " ";
    spec->pre_tokenizer.push_back(std::move(step));
  }
  if (field.BoolOr("use_regex", true)) {
    spec->pre_tokenizer.push_back(Split(kGpt2Pattern, SplitBehavior::kIsolated));
  }
  spec->byte_level = true;
}

}  // namespace

void ReadNormalizer(const JsonField& field, TokenizerSpec* spec) {
  using Kind = NormalizerStep::Kind;
  if (field.value().is_null() || !field.ok()) return;
  const std::string type = field["type"].String();
  if (type == "Sequence") {
    field.AllowKeys({"type", "normalizers"});
    const JsonField list = field["normalizers"];
    for (size_t i = 0; i < list.ArraySize(); ++i) ReadNormalizer(list.at(i), spec);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    field.AllowKeys({"type"});
    const Kind kind = type == "NFC"    ? Kind::kNfc
                      : type == "NFD"  ? Kind::kNfd
                      : type == "NFKC" ? Kind::kNfkc
                                       : Kind::kNfkd;
    spec->normalizer.push_back({kind, "", ""});
  } else if (type == "Prepend") {
    field.AllowKeys({"type", "prepend"});
    spec->normalizer.push_back({Kind::kPrepend, "", field["prepend"].String()});
  } else if (type == "Replace") {
    field.AllowKeys({"type", "pattern", "content"});
    NormalizerStep step{Kind::kReplace, "", field["content"].String()};
    bool literal = true;
    ReadPattern(field["pattern"], &literal, &step.pattern);
    if (!literal) field["pattern"].Fail("a regular expression is not supported here");
    spec->normalizer.push_back(std::move(step));
  } else {
    field.Fail(absl::StrCat("normalizer type \"", type, "\" is not supported"));
  }
}

void ReadPreTokenizer(const JsonField& field, TokenizerSpec* spec) {
  if (field.value().is_null() || !field.ok()) return;
  const std::string type = field["type"].String();
  if (spec->byte_level) field.Fail("a pre-tokenizer after ByteLevel is not supported");
  if (type == "Sequence") {
    field.AllowKeys({"type", "pretokenizers"});
    const JsonField list = field["pretokenizers"];
    for (size_t i = 0; i < list.ArraySize(); ++i) ReadPreTokenizer(list.at(i), spec);
  } else if (type == "ByteLevel") {
    ReadByteLevel(field, spec);
  } else if (type == "Digits") {
    field.AllowKeys({"type", "individual_digits"});
    const bool individual = field.BoolOr("individual_digits", false);
    spec->pre_tokenizer.push_back(
        Split(R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  } else if (type == "Split") {
    field.AllowKeys({"type", "pattern", "behavior", "invert"});
    PreTokenizerStep step;
    ReadPattern(field["pattern"], &step.literal, &step.pattern);
    step.behavior = ReadBehavior(field["behavior"]);
    step.invert = field.BoolOr("invert", false);
    spec->pre_tokenizer.push_back(std::move(step));
  } else if (type == "Metaspace") {
    const Metaspace metaspace = ReadMetaspace(field);
    PreTokenizerStep replace;
    replace.kind = PreTokenizerStep::Kind::kReplace;
    replace.pattern = " ";
    replace.literal = true;
    replace.content = metaspace.replacement;
    spec->pre_tokenizer.push_back(std::move(replace));
    if (metaspace.scheme != "never") {
      PreTokenizerStep prefix;
      prefix.kind = PreTokenizerStep::Kind::kAddPrefix;
      prefix.pattern = metaspace.replacement;
      prefix.first_only = metaspace.scheme == "first";
      spec->pre_tokenizer.push_back(std::move(prefix));
    }
    if (metaspace.split) {
      spec->pre_tokenizer.push_back(
          Split(metaspace.replacement, SplitBehavior::kMergedWithNext, /*literal=*/true));
    }
  } else {
    field.Fail(absl::StrCat("pre-tokenizer type \"", type, "\" is not supported"));
  }
}

void ReadPostProcessor(const JsonField& field, TokenizerSpec* spec) {
  if (field.value().is_null() || !field.ok()) return;
  const std::string type = field["type"].String();
  if (type == "Sequence") {
    field.AllowKeys({"type", "processors"});
    const JsonField list = field["processors"];
    for (size_t i = 0; i < list.ArraySize(); ++i) ReadPostProcessor(list.at(i), spec);
  } else if (type == "ByteLevel") {  // concerns offsets only
    field.AllowKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    field.AllowKeys({"type", "single", "pair", "special_tokens"});
    if (!spec->prefix_ids.empty() || !spec->suffix_ids.empty())
      field.Fail("a second template is not supported");
    const JsonField single = field["single"];
    bool seen_text = false;
    for (size_t i = 0; i < single.ArraySize() && field.ok(); ++i) {
      const JsonField part = single.at(i);
      part.AllowKeys({"SpecialToken", "Sequence"});
      if (part.Has("Sequence")) {
        if (seen_text || part["Sequence"]["id"].String() != "A")
          part.Fail("only one sequence, \"A\", is expected");
        seen_text = true;
        continue;
      }
      const std::string name = part["SpecialToken"]["id"].String();
      const JsonField ids = field["special_tokens"][name.c_str()]["ids"];
      for (size_t k = 0; k < ids.ArraySize(); ++k) {
        (seen_text ? spec->suffix_ids : spec->prefix_ids).push_back(ids.at(k).Id());
      }
    }
    if (!seen_text) single.Fail("the text itself, sequence \"A\", is missing");
  } else {
    field.Fail(absl::StrCat("post-processor type \"", type, "\" is not supported"));
  }
}

namespace {

// `fused` says that a preceding step joined all tokens to one text.
void ReadDecoderStep(const JsonField& field, TokenizerSpec* spec, bool* fused) {
  if (!field.ok()) return;
  const std::string type = field["type"].String();
  if (type == "Sequence") {
    field.AllowKeys({"type", "decoders"});
    const JsonField list = field["decoders"];
    for (size_t i = 0; i < list.ArraySize(); ++i) ReadDecoderStep(list.at(i), spec, fused);
  } else if (type == "ByteLevel") {
    field.AllowKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    if (!spec->byte_level)
      field.Fail("a ByteLevel decoder without a ByteLevel pre-tokenizer is not supported");
  } else if (spec->byte_level) {
    field.Fail(absl::StrCat("decoder type \"", type,
                            "\" with a ByteLevel pre-tokenizer is not supported"));
  } else if (type == "Replace") {
    field.AllowKeys({"type", "pattern", "content"});
    bool literal = true;
    std::string pattern;
    ReadPattern(field["pattern"], &literal, &pattern);
    if (!literal) field["pattern"].Fail("a regular expression is not supported here");
    if (*fused || spec->decode_byte_tokens)
      field.Fail("Replace after ByteFallback or Fuse is not supported");
    spec->decode_replacements.emplace_back(pattern, field["content"].String());
  } else if (type == "ByteFallback") {
    field.AllowKeys({"type"});
    spec->decode_byte_tokens = true;
  } else if (type == "Fuse") {
    field.AllowKeys({"type"});
    *fused = true;
  } else if (type == "Strip") {
    field.AllowKeys({"type", "content", "start", "stop"});
    const int32_t start = field["start"].Id(), stop = field["stop"].Id();
    if (field["content"].String() != " " || start > 1 || stop != 0 || !*fused) {
      field.Fail("only the removal of one space at the start of the whole text is supported");
    }
    if (start == 1) spec->decode_start = DecodeStart::kStripOneSpace;
  } else if (type == "Metaspace") {
    const Metaspace metaspace = ReadMetaspace(field);
    spec->decode_replacements.emplace_back(metaspace.replacement, " ");
    if (metaspace.scheme != "never") spec->decode_start = DecodeStart::kDropMetaspace;
  } else {
    field.Fail(absl::StrCat("decoder type \"", type, "\" is not supported"));
  }
}

}  // namespace

void ReadDecoder(const JsonField& field, TokenizerSpec* spec) {
  if (!field.ok()) return;
  if (field.value().is_null()) return field.Fail("a tokenizer without decoder is not supported");
  bool fused = false;
  ReadDecoderStep(field, spec, &fused);
}

}  // namespace verbatim::model
