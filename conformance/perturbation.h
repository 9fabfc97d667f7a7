// The table of perturbations: everything that a strong policy promises its bits do not depend on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conformance/setup.h"

namespace verbatim::conformance {

// What must have happened at least once for a perturbation to count as tried.
enum class Witness : uint8_t {
  kNone,
  kPreemptions,      // subjects gave back their pages and were recomputed
  kCachedTokens,     // subjects took positions from the prefix cache
  kEvictions,        // subjects found less in the prefix cache than a warm one holds
  kNanRequests,      // neighbours ended because of a NaN
  kCancelled,        // neighbours ended as cancelled
  kOtherPolicyRows,  // rows of the other policy ran in the same engine
  kCrowdedRoutings,  // RoutingCounts: an expert got twice its share
  kSpreadRoutings,   // RoutingCounts: no expert got many more tokens than others
  // Slots that capacity limits took from rows; for a strong policy, where some of its rows (or of
  // the other strong one) were routed with those.
  kLostSlots,
  kReroutedSlots,
};
constexpr int kNumWitnesses = 11;

struct Perturbation {
  std::string name;
  std::string what;  // one sentence for the report
  std::vector<Variant> variants;
  Witness witness = Witness::kNone;
};

// How much of each axis is tried.
struct Scale {
  std::vector<int> batch_sizes;
  std::vector<int> places;       // neighbours before the subject, of 16
  std::vector<int> chunk_sizes;  // max_num_batched_tokens
  std::vector<int> page_sizes;
  std::vector<int> threads;
  std::vector<int> sample_counts;  // n
  std::vector<double> capacity_factors;
  int neighbours = 8;
  int shuffles = 2;         // page permutations
  int scalar_subjects = 3;  // scalar kernels are slow
  int subject_limit = 0;    // subjects of a variant, except for batch sizes; 0: all
  int combinations = 8;     // random ones
  uint64_t seed = 1;
};

Scale ShortScale();   // seconds on a synthetic model
Scale FullScale();    // for a synthetic model
Scale EffectScale();  // for the effects on THROUGHPUT, on a synthetic model
Scale ModelScale();   // for a model of 100 million weights
// For a synthetic mixture of experts, whose tokens cost several times as much.
Scale ShortMixtureScale();
Scale FullMixtureScale();
Scale MixtureEffectScale();

// Each axis alone, then random combinations of all. Variants that this machine cannot run (a wider
// instruction set than it has) are left out. `mixture`: also those of mixtures of experts.
std::vector<Perturbation> MakePerturbations(const Scale& scale, int64_t max_model_len,
                                            bool mixture);

}  // namespace verbatim::conformance
