// Sparse upcycling: a mixture of experts made from a dense checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "upcycle/model_files.h"

namespace verbatim::upcycle {

struct UpcycleOptions {
  std::string model;   // a dense checkpoint of the Llama or Mistral family
  std::string output;  // a directory, which must not exist
  bool overwrite = false;
  int64_t num_experts = 4;        // 2 to 64
  int64_t experts_per_token = 2;  // 1 to num_experts
  // Share of the parent's feed-forward neurons that an expert keeps, in (0, 1]; rounded to the
  // nearest multiple of 32 neurons, at least 32. 1 keeps all.
  double keep = 0.96;
  // Standard deviation of the noise on experts' weights, relative to a neuron's root mean square.
  double noise = 0.04;
  double first_share = 0.62;  // RouterFitOptions
  uint64_t seed = 1;
  std::vector<std::string> calibration_texts;  // files; at least one
  int64_t calibration_tokens = 8192;           // of all texts together, in whole windows
  int64_t window_tokens = 512;
  int threads = 0;  // 0: every core this process may use
  // What is being done, for people; may be empty.
  std::function<void(const std::string& line)> progress;
};

struct UpcycleResult {
  Provenance provenance;
  int64_t weight_file_bytes = 0;
};

// INVALID_ARGUMENT naming the option, before anything is read.
absl::Status ValidateOptions(const UpcycleOptions& options);

// Writes a Mixtral-layout model in Hugging Face's form (config.json, model.safetensors in BF16,
// tokenizer, generation_config.json, upcycle.json, README.md). After A. Komatsuzaki et al., "Sparse
// Upcycling: Training Mixture-of-Experts from Dense Checkpoints" (2022), without its training; what
// takes that training's place is described in docs/upcycling.md. The bytes are a function of the
// parent, the options and the calibration texts; threads, machine and time do not show.
//
// FAILED_PRECONDITION for a parent that is a mixture of experts already, UNIMPLEMENTED for one
// whose family Mixtral's layout cannot hold.
absl::StatusOr<UpcycleResult> Upcycle(const UpcycleOptions& options);

}  // namespace verbatim::upcycle
