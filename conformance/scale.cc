// How much of each axis the forms of the suite try.
#include <numeric>
#include <vector>

#include "conformance/perturbation.h"

namespace verbatim::conformance {
namespace {

std::vector<int> Range(int first, int last) {
  std::vector<int> out(static_cast<size_t>(last - first + 1));
  std::iota(out.begin(), out.end(), first);
  return out;
}

}  // namespace

Scale ShortScale() {
  return {.batch_sizes = {2, 3, 9, 17},
          .places = {0, 15},
          .chunk_sizes = {5, 33},
          .page_sizes = {16, 256},
          .threads = {1, 3},
          .sample_counts = {3},
          .capacity_factors = {0.5},
          .neighbours = 4,
          .shuffles = 1,
          .scalar_subjects = 2,
          .combinations = 4};
}

Scale FullScale() {
  return {.batch_sizes = Range(1, 64),
          .places = {0, 1, 2, 3, 5, 7, 8, 11, 14, 15},
          .chunk_sizes = {1, 2, 3, 7, 16, 17, 33, 64, 100, 128, 255, 300, 2048},
          .page_sizes = {16, 32, 64, 128, 256},
          .threads = {1, 2, 3, 8},
          .sample_counts = {2, 3, 8},
          .capacity_factors = {0.25, 0.5, 1.0},
          .neighbours = 12,
          .shuffles = 4,
          .scalar_subjects = 16,
          .combinations = 24};
}

Scale EffectScale() {
  Scale scale = FullScale();
  scale.batch_sizes = {2, 3, 4, 5, 8, 12, 16, 32, 64};
  scale.places = {0, 7, 15};
  scale.chunk_sizes = {2, 16, 33, 100, 255};
  scale.scalar_subjects = 4;
  scale.combinations = 8;
  return scale;
}

Scale ModelScale() {
  return {.batch_sizes = {2, 4, 5, 16, 64},
          .places = {0, 15},
          .chunk_sizes = {16, 100},
          .page_sizes = {16, 128},
          .threads = {1, 3},
          .sample_counts = {4},
          .capacity_factors = {0.25, 0.5, 1.0},
          .neighbours = 6,
          .shuffles = 1,
          .scalar_subjects = 1,
          .subject_limit = 3,
          .combinations = 3};
}

Scale ShortMixtureScale() {
  Scale scale = ShortScale();
  scale.batch_sizes = {2, 9};
  scale.places = {15};
  scale.chunk_sizes = {33};
  scale.page_sizes = {16};
  scale.threads = {1};
  scale.scalar_subjects = 1;
  return scale;
}

Scale FullMixtureScale() {
  Scale scale = FullScale();
  scale.batch_sizes = {2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 31, 33, 48, 64};
  scale.places = {0, 3, 7, 8, 15};
  scale.chunk_sizes = {2, 7, 17, 33, 64, 128, 255, 300};
  scale.scalar_subjects = 2;
  scale.combinations = 16;
  return scale;
}

Scale MixtureEffectScale() {
  Scale scale = FullMixtureScale();
  scale.batch_sizes = {2, 4, 9, 16, 64};
  scale.places = {0, 15};
  scale.chunk_sizes = {16, 33, 100};
  scale.page_sizes = {16, 128};
  scale.threads = {1, 3};
  scale.sample_counts = {3};
  scale.shuffles = 1;
  scale.combinations = 8;
  return scale;
}

}  // namespace verbatim::conformance
