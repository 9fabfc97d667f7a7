// Serialising a TokenizerSpec. Source of the fields: the serialized forms of Hugging Face
// tokenizers 0.15 to 0.23.
#include "model/tokenizer_json_writer.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

using nlohmann::ordered_json;

absl::Status Unsupported(const std::string& what) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer: ", what, " cannot be written as tokenizer.json"));
}

const char* NameOf(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return "Removed";
    case SplitBehavior::kIsolated:
      return "Isolated";
    case SplitBehavior::kMergedWithPrevious:
      return "MergedWithPrevious";
    case SplitBehavior::kMergedWithNext:
      return "MergedWithNext";
    case SplitBehavior::kContiguous:
      return "Contiguous";
  }
  return "Isolated";
}

ordered_json Pattern(bool literal, const std::string& pattern) {
  return {{literal ? "String" : "Regex", pattern}};
}

ordered_json NormalizerJson(const TokenizerSpec& spec) {
  ordered_json steps = ordered_json::array();
  for (const NormalizerStep& step : spec.normalizer) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        steps.push_back({{"type", "NFC"}});
        break;
      case NormalizerStep::Kind::kNfd:
        steps.push_back({{"type", "NFD"}});
        break;
      case NormalizerStep::Kind::kNfkc:
        steps.push_back({{"type", "NFKC"}});
        break;
      case NormalizerStep::Kind::kNfkd:
        steps.push_back({{"type", "NFKD"}});
        break;
      case NormalizerStep::Kind::kPrepend:
        steps.push_back({{"type", "Prepend"}, {"prepend", step.content}});
        break;
      case NormalizerStep::Kind::kReplace:
        steps.push_back({{"type", "Replace"},
                         {"pattern", Pattern(/*literal=*/true, step.pattern)},
                         {"content", step.content}});
        break;
    }
  }
  if (steps.empty()) return nullptr;
  if (steps.size() == 1) return steps[0];
  return {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
}

ordered_json ByteLevelJson() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", false}};
}

absl::StatusOr<ordered_json> PreTokenizerJson(const TokenizerSpec& spec) {
  ordered_json steps = ordered_json::array();
  for (const PreTokenizerStep& step : spec.pre_tokenizer) {
    if (step.kind != PreTokenizerStep::Kind::kSplit) {
      return Unsupported("a pre-tokenizer that adds or replaces text");
    }
    steps.push_back({{"type", "Split"},
                     {"pattern", Pattern(step.literal, step.pattern)},
                     {"behavior", NameOf(step.behavior)},
                     {"invert", step.invert}});
  }
  steps.push_back(ByteLevelJson());
  return ordered_json{{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

// Ids before and after the text; null without any.
ordered_json PostProcessorJson(const TokenizerSpec& spec) {
  if (spec.prefix_ids.empty() && spec.suffix_ids.empty()) return nullptr;
  ordered_json tokens = ordered_json::object();
  const auto special = [&](int32_t id) {
    const std::string& text = spec.tokens[id];
    tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    return ordered_json{{"SpecialToken", {{"id", text}, {"type_id", 0}}}};
  };
  const auto around = [&](std::initializer_list<const char*> names) {
    ordered_json parts = ordered_json::array();
    for (const int32_t id : spec.prefix_ids) parts.push_back(special(id));
    for (const char* name : names) {
      parts.push_back({{"Sequence", {{"id", name}, {"type_id", 0}}}});
    }
    for (const int32_t id : spec.suffix_ids) parts.push_back(special(id));
    return parts;
  };
  ordered_json single = around({"A"});
  ordered_json pair = around({"A", "B"});
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(tokens)}};
}

ordered_json AddedTokensJson(const TokenizerSpec& spec) {
  ordered_json list = ordered_json::array();
  for (const AddedToken& token : spec.added_tokens) {
    list.push_back({{"id", token.id},
                    {"content", token.text},
                    {"single_word", token.single_word},
                    {"lstrip", token.lstrip},
                    {"rstrip", token.rstrip},
                    {"normalized", token.normalized},
                    {"special", token.special}});
  }
  return list;
}

absl::StatusOr<ordered_json> ModelJson(const TokenizerSpec& spec) {
  ordered_json vocabulary = ordered_json::object();
  // As a vector: an ordered object would search all earlier tokens for each one.
  std::vector<std::pair<const std::string, ordered_json>>& tokens =
      vocabulary.get_ref<ordered_json::object_t&>();
  tokens.reserve(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) tokens.emplace_back(spec.tokens[id], id);
  ordered_json merges = ordered_json::array();
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const BpeMerge& merge = spec.merges[i];
    if (merge.rank != static_cast<int32_t>(i)) return Unsupported("merges that share a rank");
    merges.push_back({spec.tokens[merge.left], spec.tokens[merge.right]});
  }
  ordered_json unknown = nullptr;
  if (spec.unknown_id.has_value()) unknown = spec.tokens[*spec.unknown_id];
  return ordered_json{{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", std::move(unknown)},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", spec.fuse_unknown},
                      {"byte_fallback", spec.byte_fallback},
                      {"ignore_merges", spec.ignore_merges},
                      {"vocab", std::move(vocabulary)},
                      {"merges", std::move(merges)}};
}

std::string Text(const ordered_json& json, int indent) {
  return absl::StrCat(json.dump(indent), "\n");
}

}  // namespace

absl::StatusOr<TokenizerFiles> WriteTokenizerFiles(const TokenizerSpec& spec) {
  if (!spec.byte_level || !spec.extra_symbols.empty() || spec.decode_byte_tokens ||
      !spec.decode_replacements.empty() || spec.decode_start != DecodeStart::kKeep) {
    return Unsupported("one that is not byte-level BPE");
  }
  absl::StatusOr<ordered_json> pre_tokenizer = PreTokenizerJson(spec);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  absl::StatusOr<ordered_json> model = ModelJson(spec);
  if (!model.ok()) return model.status();
  const ordered_json tokenizer = {{"version", "1.0"},
                                  {"truncation", nullptr},
                                  {"padding", nullptr},
                                  {"added_tokens", AddedTokensJson(spec)},
                                  {"normalizer", NormalizerJson(spec)},
                                  {"pre_tokenizer", *std::move(pre_tokenizer)},
                                  {"post_processor", PostProcessorJson(spec)},
                                  {"decoder", ByteLevelJson()},
                                  {"model", *std::move(model)}};
  ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                         {"clean_up_tokenization_spaces", false}};
  if (spec.bos_id.has_value()) config["bos_token"] = spec.tokens[*spec.bos_id];
  if (!spec.eos_ids.empty()) config["eos_token"] = spec.tokens[spec.eos_ids.front()];
  if (!spec.chat_template.empty()) config["chat_template"] = spec.chat_template;
  return TokenizerFiles{Text(tokenizer, 1), Text(config, 2)};
}

}  // namespace verbatim::model
