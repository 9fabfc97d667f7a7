// What a model's files say about its tokenizer, in one form for all file formats.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/bpe.h"
#include "model/pre_tokenizer.h"

namespace verbatim::model {

class GgufFile;

// A token recognised as a whole before byte-pair encoding sees the text.
struct AddedToken {
  int32_t id = -1;
  std::string text;
  bool special = false;      // dropped by skip_special_tokens, ignored by parse_special = false
  bool single_word = false;  // only between characters that are not part of a word
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  bool normalized = false;   // looked for in the normalized text
};

struct NormalizerStep {
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kReplace, kPrepend };
  Kind kind = Kind::kNfc;
  std::string pattern;  // kReplace: a literal
  std::string content;  // kReplace, kPrepend
};

// What decoding does with the very first token's text.
enum class DecodeStart {
  kKeep,
  kStripOneSpace,  // a space that begins the whole text is dropped
  kDropMetaspace,  // the first token loses every U+2581
};

struct TokenizerSpec {
  std::vector<std::string> tokens;  // text as in the file, by id

  // true: the text's bytes are the symbols, written in the vocabulary in GPT-2's printable alphabet
  // (byte_level_bpe.h). false: its characters are.
  bool byte_level = false;
  std::vector<BpeMerge> merges;
  // Characters that take part in merges without being tokens; they have the ids tokens.size() + i.
  std::vector<std::string> extra_symbols;
  bool ignore_merges = false;  // a piece that is a token is that token
  bool byte_fallback = false;  // an unknown character becomes tokens "<0x00>" to "<0xFF>"
  bool fuse_unknown = false;   // unknown characters in a row become one unknown token
  std::optional<int32_t> unknown_id;

  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::vector<AddedToken> added_tokens;
  std::vector<int32_t> prefix_ids;  // added by add_special_tokens
  std::vector<int32_t> suffix_ids;

  bool decode_byte_tokens = false;  // "<0x41>" decodes to the byte
  std::vector<std::pair<std::string, std::string>> decode_replacements;  // in each token's text
  DecodeStart decode_start = DecodeStart::kKeep;

  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
  std::string chat_template;
};

// What the tokenizer.ggml.* metadata of a GGUF file describes.
absl::StatusOr<TokenizerSpec> ReadGgufTokenizerSpec(const GgufFile& file);

// Adds the ids of special tokens with the names that model families use for an end of turn or text,
// unless they are there.
void AddWellKnownEosIds(TokenizerSpec* spec);

}  // namespace verbatim::model
