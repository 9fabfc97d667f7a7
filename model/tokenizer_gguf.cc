// Tokenizers from the tokenizer.ggml.* metadata of a GGUF file.
// Sources: the key names of the GGUF specification (ggml, docs/gguf.md), the names of
// pre-tokenizers and the defaults that depend on them as llama.cpp writes them
// (convert_hf_to_gguf.py, llama-vocab.cpp).
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/bpe_tokenizer.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/utf8.h"

namespace verbatim::model {
namespace {

constexpr char kMetaspace[] = "\xE2\x96\x81";  // U+2581

// Values of tokenizer.ggml.token_type that make a difference here.
constexpr int64_t kNormal = 1, kUserDefined = 4, kUnused = 5, kByte = 6;

struct PreTokenizerPreset {
  std::vector<const char*> patterns;
  bool ignore_merges = false;
  bool add_bos = false;
  bool nfc = false;
};

const PreTokenizerPreset* FindPreset(const std::string& name) {
  static const auto* const presets = [] {
    const PreTokenizerPreset gpt2{{kGpt2Pattern}};
    const PreTokenizerPreset digits{{R"(\p{N})", kGpt2Pattern}};
    const PreTokenizerPreset llama3{{kLlama3Pattern}, true, true};
    const PreTokenizerPreset cl100k{{kLlama3Pattern}};
    const PreTokenizerPreset qwen2{{kQwen2Pattern}, false, false, true};
    const PreTokenizerPreset tekken{{kTekkenPattern}, true, true};
    const PreTokenizerPreset gpt4o{{kGpt4oPattern}};
    return new std::map<std::string, PreTokenizerPreset>{
        {"gpt-2", gpt2},       {"phi-2", gpt2},
        {"mpt", gpt2},         {"olmo", gpt2},
        {"smollm", digits},    {"starcoder", digits},
        {"refact", digits},    {"codeshell", digits},
        {"command-r", digits}, {"llama3", llama3},
        {"llama-v3", llama3},  {"llama-bpe", llama3},
        {"dbrx", cl100k},      {"smaug-bpe", cl100k},
        {"qwen2", qwen2},      {"deepseek-r1-qwen", qwen2},
        {"tekken", tekken},    {"gpt-4o", gpt4o}};
  }();
  const auto it = presets->find(name);
  return it == presets->end() ? nullptr : &it->second;
}

std::string Key(const std::string& name) { return absl::StrCat("tokenizer.ggml.", name); }

// Reads the metadata of one file into a specification.
class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  absl::StatusOr<TokenizerSpec> Read() {
    absl::Status status = ReadAll();
    if (!status.ok()) return status;
    return std::move(spec_);
  }

 private:
  absl::Status Error(const std::string& field, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": metadata ", field, ": ", what));
  }

  // Replaces `value` if the key is there.
  template <typename T>
  absl::Status Optional(absl::StatusOr<T> found, T* value) const {
    if (found.ok()) {
      *value = *std::move(found);
      return absl::OkStatus();
    }
    return absl::IsNotFound(found.status()) ? absl::OkStatus() : found.status();
  }
  absl::Status OptionalId(const std::string& name, std::optional<int32_t>* id) const {
    const absl::StatusOr<int64_t> value = file_.GetInt(Key(name));
    if (absl::IsNotFound(value.status())) return absl::OkStatus();
    if (!value.ok()) return value.status();
    // Some writers say "none" as 2^32 - 1.
    if (*value == 0xFFFFFFFFll) return absl::OkStatus();
    if (*value < 0 || *value >= static_cast<int64_t>(spec_.tokens.size())) {
      return Error(Key(name), absl::StrCat("id ", *value, " is out of range, there are ",
                                           spec_.tokens.size(), " tokens"));
    }
    *id = static_cast<int32_t>(*value);
    return absl::OkStatus();
  }

  absl::Status ReadAll() {
    absl::StatusOr<std::string> model = file_.GetString(Key("model"));
    if (!model.ok()) return model.status();
    absl::Status status = ReadTokens();
    if (!status.ok()) return status;
    if (*model == "gpt2") {
      status = ReadByteLevel();
    } else if (*model == "llama") {
      status = ReadSentencePiece();
    } else {
      return absl::UnimplementedError(
          absl::StrCat(file_.path(), ": metadata ", Key("model"), ": tokenizer model \"", *model,
                       "\" is not supported; supported are gpt2 and llama"));
    }
    if (status.ok()) status = ReadSpecialTokens();
    if (!status.ok()) return status;
    return Optional(file_.GetString("tokenizer.chat_template"), &spec_.chat_template);
  }

  absl::Status ReadTokens() {
    auto tokens = file_.GetArray(Key("tokens"));
    if (!tokens.ok()) return tokens.status();
    spec_.tokens = (*tokens)->strings;
    const size_t n = spec_.tokens.size();
    if (n == 0) return Error(Key("tokens"), "no strings");
    for (size_t i = 0; i < n; ++i) {
      if (!IsValidUtf8(spec_.tokens[i]))
        return Error(absl::StrCat(Key("tokens"), "[", i, "]"), "not UTF-8");
      const auto [it, inserted] = id_of_.try_emplace(spec_.tokens[i], static_cast<int32_t>(i));
      if (!inserted) {
        return Error(absl::StrCat(Key("tokens"), "[", i, "]"),
                     absl::StrCat("\"", spec_.tokens[i], "\" is also the token ", it->second));
      }
    }
    auto types = file_.GetArray(Key("token_type"));
    types_.assign(n, kNormal);
    if (absl::IsNotFound(types.status())) return absl::OkStatus();
    if (!types.ok()) return types.status();
    if ((*types)->ints.size() != n) {
      return Error(Key("token_type"),
                   absl::StrCat((*types)->ints.size(), " integers for ", n, " tokens"));
    }
    types_ = (*types)->ints;
    for (size_t i = 0; i < n; ++i) {
      if (types_[i] < kNormal || types_[i] > kByte) {
        return Error(absl::StrCat(Key("token_type"), "[", i, "]"),
                     absl::StrCat("unknown type ", types_[i]));
      }
      if (types_[i] == kNormal || types_[i] == kUnused || types_[i] == kByte) continue;
      if (spec_.tokens[i].empty())
        return Error(absl::StrCat(Key("tokens"), "[", i, "]"), "special token without text");
      AddedToken added;
      added.id = static_cast<int32_t>(i);
      added.text = spec_.tokens[i];
      added.special = types_[i] != kUserDefined;
      spec_.added_tokens.push_back(std::move(added));
    }
    return absl::OkStatus();
  }

  absl::Status ReadByteLevel() {
    spec_.byte_level = true;
    absl::StatusOr<std::string> name = file_.GetString(Key("pre"));
    if (!name.ok()) return name.status();
    const PreTokenizerPreset* preset = FindPreset(*name);
    if (preset == nullptr) {
      return absl::UnimplementedError(absl::StrCat(file_.path(), ": metadata ", Key("pre"),
                                                   ": pre-tokenizer \"", *name, "\" is not known"));
    }
    bool prefix_space = false;
    absl::Status status = Optional(file_.GetBool(Key("add_space_prefix")), &prefix_space);
    if (!status.ok()) return status;
    for (const char* pattern : preset->patterns) {
      PreTokenizerStep step;
      step.pattern = pattern;
      spec_.pre_tokenizer.push_back(std::move(step));
    }
    if (prefix_space) {
      PreTokenizerStep step;
      step.kind = PreTokenizerStep::Kind::kAddPrefix;
      step.pattern = " ";
      step.first_only = true;
      spec_.pre_tokenizer.insert(spec_.pre_tokenizer.begin(), std::move(step));
    }
    if (preset->nfc) spec_.normalizer.push_back({NormalizerStep::Kind::kNfc, "", ""});
    spec_.ignore_merges = preset->ignore_merges;
    add_bos_ = preset->add_bos;
    return ReadMerges();
  }

  absl::Status ReadMerges() {
    auto merges = file_.GetArray(Key("merges"));
    if (!merges.ok()) return merges.status();
    const std::vector<std::string>& lines = (*merges)->strings;
    if (lines.empty()) return Error(Key("merges"), "no strings");
    spec_.merges.reserve(lines.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string& line = lines[i];
      const std::string field = absl::StrCat(Key("merges"), "[", i, "]");
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        return Error(field,
                     absl::StrCat("\"", line, "\" is not two tokens with a space between them"));
      }
      const std::string left = line.substr(0, space), right = line.substr(space + 1);
      BpeMerge merge;
      merge.rank = static_cast<int32_t>(i);
      for (const auto& [text, id] :
           {std::pair<std::string, int32_t*>(left, &merge.left),
            std::pair<std::string, int32_t*>(right, &merge.right),
            std::pair<std::string, int32_t*>(left + right, &merge.result)}) {
        const auto it = id_of_.find(text);
        if (it == id_of_.end()) return Error(field, absl::StrCat("\"", text, "\" is not a token"));
        *id = it->second;
      }
      spec_.merges.push_back(merge);
    }
    return absl::OkStatus();
  }

  // SentencePiece's BPE has no list of merges: two neighbours merge when their joint text is a
  // piece, the highest score first. So every way to cut a piece in two parts that can exist is a
  // merge, ranked by the piece's score.
  absl::Status ReadSentencePiece() {
    auto scores = file_.GetArray(Key("scores"));
    if (!scores.ok()) return scores.status();
    const std::vector<double>& values = (*scores)->floats;
    const size_t n = spec_.tokens.size();
    if (values.size() != n) {
      return Error(Key("scores"),
                   absl::StrCat(values.size(), " floating-point numbers for ", n, " tokens"));
    }
    std::vector<int32_t> pieces;
    for (size_t i = 0; i < n; ++i) {
      if (!(values[i] == values[i]))
        return Error(absl::StrCat(Key("scores"), "[", i, "]"), "not a number");
      if (types_[i] == kNormal || types_[i] == kUserDefined || types_[i] == kUnused) {
        pieces.push_back(static_cast<int32_t>(i));
      }
    }
    std::stable_sort(pieces.begin(), pieces.end(),
                     [&](int32_t a, int32_t b) { return values[a] > values[b]; });
    const absl::flat_hash_map<std::string, int32_t> symbols = SymbolsOf(pieces);
    int32_t rank = 0;
    for (size_t k = 0; k < pieces.size(); ++k) {
      if (k > 0 && values[pieces[k]] < values[pieces[k - 1]]) ++rank;
      const std::string& text = spec_.tokens[pieces[k]];
      for (size_t cut = 1; cut < text.size(); ++cut) {
        if ((static_cast<uint8_t>(text[cut]) & 0xC0) == 0x80) continue;
        const auto left = symbols.find(text.substr(0, cut));
        if (left == symbols.end()) continue;
        const auto right = symbols.find(text.substr(cut));
        if (right == symbols.end()) continue;
        spec_.merges.push_back({left->second, right->second, pieces[k], rank});
      }
    }
    bool prefix_space = true, remove_spaces = false;
    absl::Status status = Optional(file_.GetBool(Key("add_space_prefix")), &prefix_space);
    status.Update(Optional(file_.GetBool(Key("remove_extra_whitespaces")), &remove_spaces));
    if (!status.ok()) return status;
    if (remove_spaces) return Error(Key("remove_extra_whitespaces"), "true is not supported");
    if (file_.metadata().contains(std::string_view("tokenizer.ggml.precompiled_charsmap"))) {
      return Error(Key("precompiled_charsmap"), "not supported");
    }
    if (prefix_space) spec_.normalizer.push_back({NormalizerStep::Kind::kPrepend, "", kMetaspace});
    spec_.normalizer.push_back({NormalizerStep::Kind::kReplace, " ", kMetaspace});
    spec_.byte_fallback = true;
    spec_.decode_byte_tokens = true;
    spec_.decode_replacements = {{kMetaspace, " "}};
    spec_.decode_start = prefix_space ? DecodeStart::kStripOneSpace : DecodeStart::kKeep;
    add_bos_ = true;
    return OptionalId("unknown_token_id", &spec_.unknown_id);
  }

  // Every text that can stand before or after a merge: the pieces, and the characters they are made
  // of.
  absl::flat_hash_map<std::string, int32_t> SymbolsOf(const std::vector<int32_t>& pieces) {
    absl::flat_hash_map<std::string, int32_t> symbols;
    for (int32_t id : pieces) symbols.emplace(spec_.tokens[id], id);
    for (int32_t id : pieces) {
      std::string_view rest = spec_.tokens[id];
      while (!rest.empty()) {
        const size_t length = NextUtf8Unit(rest).length;
        const auto next = static_cast<int32_t>(spec_.tokens.size() + spec_.extra_symbols.size());
        const std::string character(rest.substr(0, length));
        if (symbols.try_emplace(character, next).second) spec_.extra_symbols.push_back(character);
        rest.remove_prefix(length);
      }
    }
    return symbols;
  }

  absl::Status ReadSpecialTokens() {
    bool add_eos = false;
    std::optional<int32_t> eos;
    absl::Status status = OptionalId("bos_token_id", &spec_.bos_id);
    status.Update(OptionalId("eos_token_id", &eos));
    status.Update(Optional(file_.GetBool(Key("add_bos_token")), &add_bos_));
    status.Update(Optional(file_.GetBool(Key("add_eos_token")), &add_eos));
    if (!status.ok()) return status;
    if (eos) spec_.eos_ids.push_back(*eos);
    for (const char* name : {"eot_token_id", "eom_token_id"}) {
      std::optional<int32_t> id;
      status = OptionalId(name, &id);
      if (!status.ok()) return status;
      if (id && std::find(spec_.eos_ids.begin(), spec_.eos_ids.end(), *id) == spec_.eos_ids.end()) {
        spec_.eos_ids.push_back(*id);
      }
    }
    AddWellKnownEosIds(&spec_);
    if (add_bos_) {
      if (!spec_.bos_id)
        return Error(Key("bos_token_id"), "missing, but a BOS token is to be added");
      spec_.prefix_ids.push_back(*spec_.bos_id);
    }
    if (add_eos) {
      if (!eos) return Error(Key("eos_token_id"), "missing, but add_eos_token is true");
      spec_.suffix_ids.push_back(*eos);
    }
    return absl::OkStatus();
  }

  const GgufFile& file_;
  TokenizerSpec spec_;
  std::vector<int64_t> types_;
  absl::flat_hash_map<std::string, int32_t> id_of_;
  bool add_bos_ = false;
};

}  // namespace

absl::StatusOr<TokenizerSpec> ReadGgufTokenizerSpec(const GgufFile& file) {
  return Reader(file).Read();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  absl::StatusOr<TokenizerSpec> spec = ReadGgufTokenizerSpec(file);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = BpeTokenizer::Create(*std::move(spec));
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(file.path(), ": tokenizer: ", tokenizer.status().message()));
  }
  return tokenizer;
}

}  // namespace verbatim::model
