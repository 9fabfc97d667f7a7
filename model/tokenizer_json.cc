// Tokenizers from Hugging Face's tokenizer.json, tokenizer_config.json and chat_template.jinja.
#include "model/tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "model/bpe_tokenizer.h"
#include "model/strict_json.h"
#include "model/tokenizer.h"

namespace verbatim::model {
namespace {

using nlohmann::json;

const json& NullJson() {
  static const json* const null = new json(nullptr);
  return *null;
}

constexpr int32_t kMaxTokens = 1 << 24;
constexpr int64_t kMaxTemplateBytes = 1 << 20;

}  // namespace

void JsonField::Fail(const std::string& what) const {
  if (status_->ok()) *status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
}

void JsonField::AllowKeys(std::initializer_list<std::string_view> keys) const {
  if (!value_->is_object()) return Fail("an object is expected");
  for (const auto& [key, unused] : value_->items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      return Fail(absl::StrCat("unknown field \"", key, "\""));
    }
  }
}

bool JsonField::Has(const char* key) const {
  return value_->is_object() && value_->contains(key) && !(*value_)[key].is_null();
}

JsonField JsonField::operator[](const char* key) const {
  const std::string path = absl::StrCat(path_, ".", key);
  if (value_->is_object() && value_->contains(key)) return JsonField((*value_)[key], path, status_);
  JsonField missing(NullJson(), path, status_);
  missing.Fail("missing");
  return missing;
}

JsonField JsonField::at(size_t index) const {
  const std::string path = absl::StrCat(path_, "[", index, "]");
  if (value_->is_array() && index < value_->size())
    return JsonField((*value_)[index], path, status_);
  JsonField missing(NullJson(), path, status_);
  missing.Fail("missing");
  return missing;
}

std::string JsonField::String() const {
  if (value_->is_string()) return value_->get<std::string>();
  Fail("a string is expected");
  return {};
}

bool JsonField::Bool() const {
  if (value_->is_boolean()) return value_->get<bool>();
  Fail("true or false is expected");
  return false;
}

int32_t JsonField::Id() const {
  if (value_->is_number_unsigned()) {
    const uint64_t id = value_->get<uint64_t>();
    if (id <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max()))
      return static_cast<int32_t>(id);
  }
  Fail("an integer from 0 to 2147483647 is expected");
  return 0;
}

size_t JsonField::ArraySize() const {
  if (value_->is_array()) return value_->size();
  Fail("an array is expected");
  return 0;
}

std::string JsonField::StringOr(const char* key, const std::string& missing) const {
  return Has(key) ? (*this)[key].String() : missing;
}

bool JsonField::BoolOr(const char* key, bool missing) const {
  return Has(key) ? (*this)[key].Bool() : missing;
}

namespace {

// Puts `text` at `id`; refuses a second text for an id.
void PlaceToken(const JsonField& field, int32_t id, const std::string& text, TokenizerSpec* spec,
                std::vector<bool>* present) {
  if (!field.ok()) return;
  if (id >= kMaxTokens) return field.Fail(absl::StrCat("id ", id, " is above ", kMaxTokens - 1));
  if (static_cast<size_t>(id) >= present->size()) {
    present->resize(id + 1, false);
    spec->tokens.resize(id + 1);
  }
  if ((*present)[id] && spec->tokens[id] != text) {
    return field.Fail(
        absl::StrCat("id ", id, " is both \"", spec->tokens[id], "\" and \"", text, "\""));
  }
  (*present)[id] = true;
  spec->tokens[id] = text;
}

void ReadTokens(const JsonField& root, TokenizerSpec* spec) {
  std::vector<bool> present;
  const JsonField vocabulary = root["model"]["vocab"];
  if (!vocabulary.value().is_object()) return vocabulary.Fail("an object is expected");
  for (const auto& [text, value] : vocabulary.value().items()) {
    if (!root.ok()) return;
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= static_cast<uint64_t>(kMaxTokens)) {
      return vocabulary.Fail(
          absl::StrCat("\"", text, "\": an id from 0 to ", kMaxTokens - 1, " is expected"));
    }
    PlaceToken(vocabulary, value.get<int32_t>(), text, spec, &present);
  }
  if (root.Has("added_tokens")) {
    const JsonField list = root["added_tokens"];
    for (size_t i = 0; i < list.ArraySize() && root.ok(); ++i) {
      const JsonField field = list.at(i);
      field.AllowKeys(
          {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      AddedToken token;
      token.id = field["id"].Id();
      token.text = field["content"].String();
      token.special = field.BoolOr("special", false);
      token.single_word = field.BoolOr("single_word", false);
      token.lstrip = field.BoolOr("lstrip", false);
      token.rstrip = field.BoolOr("rstrip", false);
      token.normalized = field.BoolOr("normalized", !token.special);
      PlaceToken(field, token.id, token.text, spec, &present);
      spec->added_tokens.push_back(std::move(token));
    }
  }
  for (size_t i = 0; i < present.size() && root.ok(); ++i) {
    if (!present[i])
      vocabulary.Fail(absl::StrCat("no token has the id ", i, ", though there are higher ones"));
  }
}

std::optional<int32_t> FindToken(const JsonField& field, const std::string& text,
                                 const absl::flat_hash_map<std::string, int32_t>& ids) {
  const auto it = ids.find(text);
  if (it != ids.end()) return it->second;
  field.Fail(absl::StrCat("\"", text, "\" is not a token"));
  return std::nullopt;
}

void ReadMerges(const JsonField& list, const absl::flat_hash_map<std::string, int32_t>& ids,
                TokenizerSpec* spec) {
  const size_t count = list.ArraySize();
  spec->merges.reserve(count);
  for (size_t i = 0; i < count && list.ok(); ++i) {
    const JsonField field = list.at(i);
    std::string left, right;
    if (field.value().is_array()) {
      if (field.ArraySize() != 2) return field.Fail("two tokens are expected");
      left = field.at(0).String();
      right = field.at(1).String();
    } else {
      const std::string line = field.String();
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        return field.Fail(
            absl::StrCat("\"", line, "\" is not two tokens with a space between them"));
      }
      left = line.substr(0, space);
      right = line.substr(space + 1);
    }
    BpeMerge merge;
    merge.left = FindToken(field, left, ids).value_or(0);
    merge.right = FindToken(field, right, ids).value_or(0);
    merge.result = FindToken(field, left + right, ids).value_or(0);
    merge.rank = static_cast<int32_t>(i);
    spec->merges.push_back(merge);
  }
}

void ReadModel(const JsonField& field, TokenizerSpec* spec) {
  const std::string type = field.StringOr("type", "BPE");
  if (type != "BPE")
    return field["type"].Fail(
        absl::StrCat("model type \"", type, "\" is not supported, only BPE is"));
  field.AllowKeys({"type", "dropout", "unk_token", "continuing_subword_prefix",
                   "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
                   "merges"});
  if (field.Has("dropout") && field["dropout"].value() != 0)
    field["dropout"].Fail("dropout is not supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!field.StringOr(key, "").empty()) field[key].Fail("not supported");
  }
  spec->fuse_unknown = field.BoolOr("fuse_unk", false);
  spec->byte_fallback = field.BoolOr("byte_fallback", false);
  spec->ignore_merges = field.BoolOr("ignore_merges", false);
  absl::flat_hash_map<std::string, int32_t> ids;
  for (const auto& [text, value] : field["vocab"].value().items())
    ids.emplace(text, value.get<int32_t>());
  if (field.Has("unk_token")) {
    spec->unknown_id = FindToken(field["unk_token"], field["unk_token"].String(), ids);
  }
  ReadMerges(field["merges"], ids, spec);
}

// A token in tokenizer_config.json is a string or an object with "content".
std::optional<int32_t> ReadNamedToken(const JsonField& config, const char* key,
                                      const TokenizerSpec& spec) {
  if (!config.Has(key)) return std::nullopt;
  const JsonField field = config[key];
  const std::string text = field.value().is_object() ? field["content"].String() : field.String();
  if (!field.ok()) return std::nullopt;
  const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), text);
  if (it != spec.tokens.end()) return static_cast<int32_t>(it - spec.tokens.begin());
  field.Fail(absl::StrCat("\"", text, "\" is not a token"));
  return std::nullopt;
}

void ReadConfig(const JsonField& config, TokenizerSpec* spec) {
  if (!config.value().is_object()) return config.Fail("an object is expected");
  if (const auto bos = ReadNamedToken(config, "bos_token", *spec)) spec->bos_id = bos;
  if (const auto eos = ReadNamedToken(config, "eos_token", *spec)) spec->eos_ids.push_back(*eos);
  if (!config.Has("chat_template")) return;
  const JsonField chat = config["chat_template"];
  if (!chat.value().is_array()) {
    spec->chat_template = chat.String();
    return;
  }
  for (size_t i = 0; i < chat.ArraySize(); ++i) {  // several templates, each with a name
    if (chat.at(i)["name"].String() == "default")
      spec->chat_template = chat.at(i)["template"].String();
  }
}

absl::Status ReadTemplateFile(const std::filesystem::path& path, TokenizerSpec* spec) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return absl::OkStatus();  // there is none
  if (size > static_cast<uintmax_t>(kMaxTemplateBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": larger than ", kMaxTemplateBytes, " bytes"));
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return absl::InvalidArgumentError(absl::StrCat(path.string(), ": cannot be read"));
  spec->chat_template = text.str();
  return absl::OkStatus();
}

void ReadTokenizer(const JsonField& root, TokenizerSpec* spec) {
  root.AllowKeys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                  "post_processor", "decoder", "model"});
  for (const char* key : {"truncation", "padding"}) {
    if (root.Has(key)) root[key].Fail("not supported: null is expected");
  }
  if (root.StringOr("version", "1.0") != "1.0")
    root["version"].Fail("only version 1.0 is supported");
  if (!root.ok()) return;
  ReadTokens(root, spec);
  if (!root.ok()) return;
  ReadModel(root["model"], spec);
  if (root.Has("normalizer")) ReadNormalizer(root["normalizer"], spec);
  if (root.Has("pre_tokenizer")) ReadPreTokenizer(root["pre_tokenizer"], spec);
  if (root.Has("post_processor")) ReadPostProcessor(root["post_processor"], spec);
  ReadDecoder(root["decoder"], spec);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJsonFile(const std::string& path) {
  absl::StatusOr<json> document = ReadStrictJsonFile(path);
  if (!document.ok()) return document.status();
  TokenizerSpec spec;
  absl::Status status;
  ReadTokenizer(JsonField(*document, path + ": tokenizer", &status), &spec);
  if (!status.ok()) return status;

  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const std::string config_path = (folder / "tokenizer_config.json").string();
  absl::StatusOr<json> config = ReadStrictJsonFile(config_path);
  if (config.ok()) {
    ReadConfig(JsonField(*config, config_path + ": config", &status), &spec);
  } else if (!absl::IsNotFound(config.status())) {
    return config.status();
  }
  status.Update(ReadTemplateFile(folder / "chat_template.jinja", &spec));
  if (!status.ok()) return status;
  if (!spec.bos_id && !spec.prefix_ids.empty()) spec.bos_id = spec.prefix_ids.front();
  AddWellKnownEosIds(&spec);

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = BpeTokenizer::Create(std::move(spec));
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

}  // namespace verbatim::model
