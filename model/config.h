// Reading of model configurations, and the check that a model is one that Verbatim computes
// exactly.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/gguf.h"

namespace verbatim::model {

// From `directory`/config.json and, for the end-of-sequence ids, generation_config.json where there
// is one. A field that would change the computation in a way that Verbatim does not have is
// refused. Errors name the file and the field: NOT_FOUND without config.json, INVALID_ARGUMENT for
// a missing, mistyped or impossible value, UNIMPLEMENTED for a model that is not supported.
absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& directory);

class JsonFields;

// The fields of a mixture of experts, and Granite's multipliers, where config.family is such a
// family. The rest of the configuration must have been read.
void ReadHuggingFaceMoe(JsonFields& fields, ModelConfig& config);

// From a GGUF file's metadata and, for the vocabulary, tied embeddings and rope_freqs.weight, its
// tensors. Errors as above.
absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file);

bool IsMoeFamily(Family family);

// Checks the range of every number and how they fit together. `source` begins every error.
absl::Status ValidateConfig(const ModelConfig& config, const std::string& source);

}  // namespace verbatim::model
