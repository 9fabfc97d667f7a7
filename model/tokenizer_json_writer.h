// Writes a byte-level tokenizer as Hugging Face's tokenizer.json and tokenizer_config.json.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model/tokenizer_spec.h"

namespace verbatim::model {

struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;  // names of special tokens, chat template
};

// Files from which Tokenizer::FromJsonFile makes a tokenizer with the same fingerprint.
// UNIMPLEMENTED for what tokenizer.json cannot say or what the reader does not take, naming the
// part: a tokenizer that is not byte-level (SentencePiece's merges have equal ranks), a prefix
// before the text.
absl::StatusOr<TokenizerFiles> WriteTokenizerFiles(const TokenizerSpec& spec);

}  // namespace verbatim::model
