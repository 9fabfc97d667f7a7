// Where the transformers library's checkpoints keep each tensor.
#pragma once

#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/checkpoint_tensors.h"

namespace verbatim::model {

// The places of a canonical tensor, the usual one first. Experts lie in tensors of their own or,
// as transformers 5 keeps them in memory, merged: gate_up_proj [experts, 2 · inner, hidden], gate
// before up, and down_proj [experts, hidden, inner].
std::vector<TensorPlace> HuggingFacePlaces(const std::string& canonical, const ModelConfig& config);

}  // namespace verbatim::model
