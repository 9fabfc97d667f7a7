// What the engine of rank 0 and the followers of the other ranks make alike: the model, its pages,
// and the agreement that all ranks have made the same.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/transformer.h"

namespace verbatim::engine {

// Loads this rank's part of the model and waits until it is there.
absl::StatusOr<std::unique_ptr<model::Transformer>> LoadTransformer(
    const EngineConfig& config, kernels::Backend& backend, const model::Checkpoint& checkpoint);

// Fills in scheduler.num_pages, and kv_cache_bytes where a share is asked for, for the rank that
// keeps most heads. A share is one of what is free now: of the memory beside the weights once they
// are loaded. INVALID_ARGUMENT or RESOURCE_EXHAUSTED where too few pages fit.
absl::Status ChoosePages(const model::ModelConfig& model, kernels::Backend& backend,
                         EngineConfig* config);

// Once every rank has loaded its part and chosen its pages: all take the least number of pages that
// any has chosen. FAILED_PRECONDITION names a rank whose weights, configuration or arithmetic are
// not those of rank 0.
absl::Status AgreeOnSetup(kernels::Backend& backend, const model::Checkpoint& checkpoint,
                          EngineConfig* config);

absl::StatusOr<std::unique_ptr<kernels::KvCache>> CreateCache(const EngineConfig& config,
                                                              const model::Transformer& transformer,
                                                              kernels::Backend& backend);

// A rank other than 0, from loading to the end: OK when rank 0 has closed. `config` needs a
// communicator and no more than rank 0's has.
absl::Status RunFollower(EngineConfig config, kernels::Backend& backend,
                         const model::Checkpoint& checkpoint);

}  // namespace verbatim::engine
