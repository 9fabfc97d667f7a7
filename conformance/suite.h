// Runs requests alone and under every perturbation, and counts whose bits moved.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conformance/answer.h"
#include "conformance/perturbation.h"
#include "conformance/trial_engine.h"
#include "conformance/workload.h"
#include "kernels/ops/policy.h"

namespace verbatim::conformance {

// A policy as it is tried; `activations` matters to THROUGHPUT alone.
struct PolicyUnderTest {
  kernels::Policy policy = kernels::Policy::kPortable;
  kernels::ActivationType activations = kernels::ActivationType::kF32;
  kernels::DType kv_cache_dtype = kernels::DType::kF32;

  bool strong() const { return kernels::IsStrong(policy); }
  std::string name() const;  // "portable", "portable, bf16 pages", "throughput, bf16"
};

// One perturbation under one policy on one model.
struct Cell {
  std::string model, policy, perturbation, what;
  std::string numerics_id;  // of the base configuration; empty for THROUGHPUT
  // SHA-256 (hex) over the logit chains of all references in order: equal on every machine with the
  // same numerics id, model and workload.
  std::string reference_digest;
  bool promised = true;  // false: a difference is no mismatch
  Comparison result;
  std::array<int64_t, kNumWitnesses> witnessed = {};  // by Witness
  bool exercised = true;                              // what the perturbation is about has happened
  std::vector<std::string> not_promised;  // variants left out: their numerics id is another
  double seconds = 0;

  // Differences that break a promise.
  int64_t mismatches() const { return promised ? result.mismatches() : 0; }
};

struct SuiteOptions {
  std::string model_name;
  ModelOpener open;
  std::string device = "cpu";  // as for kernels::OpenBackend
  bool random_ids = false;     // the tokenizer knows no text
  WorkloadOptions workload;
  Scale scale;
  std::vector<PolicyUnderTest> policies;
  // Called with a line for people after each cell; may be empty.
  std::function<void(const std::string&)> progress;
  // False leaves a perturbation out; may be empty.
  std::function<bool(const Perturbation&)> wanted;
};

// An error when the model cannot be opened, an engine cannot be made, or a reference fails: nothing
// can be compared then. What differs is in the cells.
absl::StatusOr<std::vector<Cell>> RunSuite(const SuiteOptions& options);

}  // namespace verbatim::conformance
