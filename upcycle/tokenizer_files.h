// The tokenizer of a checkpoint as the files of a Hugging Face directory.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace verbatim::upcycle {

struct TokenizerSource {
  std::map<std::string, std::string> files;  // by file name: tokenizer.json and what belongs to it
  std::string license;                       // general.license of a GGUF file, else empty
};

// `model` as Checkpoint::Open takes it. A directory's files are copied as they are; a GGUF file's
// tokenizer is written anew (model/tokenizer_json_writer.h).
absl::StatusOr<TokenizerSource> ReadTokenizerSource(const std::string& model);

}  // namespace verbatim::upcycle
