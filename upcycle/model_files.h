// The text files beside the weights of an upcycled model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace verbatim::upcycle {

// Of the method: the same parent, options and texts give the same bytes in one version.
inline constexpr int kMethodVersion = 1;

// What a model was made from and how. Nothing in it depends on the time, the machine or the folders
// in which files lie.
struct Provenance {
  struct Text {
    std::string file_name;
    std::string sha256;
  };
  std::string parent_name;       // from the parent's configuration, or its file name
  std::string parent_file_name;  // last component of its path
  std::string parent_weights_sha256, parent_tokenizer_sha256;
  std::string parent_license;  // as the parent's file says; may be empty
  int64_t num_experts = 0, experts_per_token = 0, intermediate_size = 0;
  int64_t parent_intermediate_size = 0;
  double keep = 0, noise = 0, first_share = 0;
  uint64_t seed = 0;
  int64_t calibration_tokens = 0, window_tokens = 0;
  std::vector<Text> calibration;
  // Results.
  double mean_relative_difference = 0;
  std::vector<std::vector<int64_t>> assigned;  // [layer][expert]: rows whose first expert it is
};

// config.json of a MixtralForCausalLM with the parent's attention and embeddings. UNIMPLEMENTED for
// rotary frequencies that its fields cannot say.
absl::StatusOr<nlohmann::ordered_json> MixtralConfig(const model::ModelConfig& parent,
                                                     const model::Tokenizer& tokenizer,
                                                     const Provenance& provenance);
// generation_config.json.
nlohmann::ordered_json GenerationConfig(const model::ModelConfig& parent,
                                        const model::Tokenizer& tokenizer);
// upcycle.json: the provenance, for programs.
nlohmann::ordered_json ProvenanceJson(const Provenance& provenance);
// README.md: the provenance, for people.
std::string ReadmeText(const Provenance& provenance);

}  // namespace verbatim::upcycle
