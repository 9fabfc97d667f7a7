// Tables of rotary-embedding cosines and sines, computed on the host in double and rounded once.
//
// angle(position, i) = position · f_i with f_i = theta^(−2i / head_dim), scaled as below; all in
// double from our own exp, log, sin and cos, so every host and device gets the same bits. Error
// against the exact value: half a unit in the last place of fp32 plus 2^-51 · angle.
#pragma once

#include <cstdint>
#include <vector>

namespace verbatim::numerics {

enum class RopeScalingKind : uint8_t {
  kNone,
  kLinear,  // f / factor
  // Llama 3.1: with w = 2π / f, f stays where w < original_max_position / high_freq_factor, becomes
  // f / factor where w > original_max_position / low_freq_factor, and between them
  // (1 − s) · f / factor + s · f with
  // s = (original_max_position / w − low_freq_factor) / (high_freq_factor − low_freq_factor).
  kLlama3,
};

struct RopeTableParams {
  int64_t head_dim = 0;      // dimensions that rotate: even and positive
  int64_t max_position = 0;  // rows of the tables
  double theta = 10000.0;    // positive
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1.0;                   // kLinear and kLlama3
  double low_freq_factor = 1.0;          // kLlama3
  double high_freq_factor = 4.0;         // kLlama3; above low_freq_factor
  int64_t original_max_position = 8192;  // kLlama3
  // Empty, or head_dim / 2 divisors of the frequencies (GGUF tensor rope_freqs.weight), applied
  // after the scaling.
  std::vector<float> freq_factors;
};

struct RopeTable {
  std::vector<float> cos;             // [max_position, head_dim / 2]
  std::vector<float> sin;             // [max_position, head_dim / 2]
  std::vector<double> inverse_freqs;  // [head_dim / 2], as used
};

// f_i of every pair.
std::vector<double> RopeInverseFrequencies(const RopeTableParams& params);

// The greatest angle, max_position · max f_i, must be at most 2^21 radians; freq_factors, when
// given, must have head_dim / 2 entries, none zero.
RopeTable BuildRopeTable(const RopeTableParams& params);

}  // namespace verbatim::numerics
