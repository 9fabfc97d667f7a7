// Rotary-embedding tables in double precision.
#include "kernels/numerics/rope_table.h"

#include "kernels/numerics/elementary64.h"

namespace verbatim::numerics {
namespace {

double ScaledFrequency(const RopeTableParams& params, double f) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  switch (params.scaling) {
    case RopeScalingKind::kNone:
      return f;
    case RopeScalingKind::kLinear:
      return f / params.factor;
    case RopeScalingKind::kLlama3: {
      const double original = static_cast<double>(params.original_max_position);
      const double wavelength = kTwoPi / f;
      if (wavelength < original / params.high_freq_factor) return f;
      if (wavelength > original / params.low_freq_factor) return f / params.factor;
      const double smooth = (original / wavelength - params.low_freq_factor) /
                            (params.high_freq_factor - params.low_freq_factor);
      return (1.0 - smooth) * (f / params.factor) + smooth * f;
    }
  }
  return f;
}

}  // namespace

std::vector<double> RopeInverseFrequencies(const RopeTableParams& params) {
  const int64_t pairs = params.head_dim / 2;
  const double log_theta = Log64(params.theta);
  std::vector<double> freqs(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    const double exponent =
        -(static_cast<double>(2 * i) / static_cast<double>(params.head_dim)) * log_theta;
    freqs[i] = ScaledFrequency(params, Exp64(exponent));
    if (!params.freq_factors.empty()) freqs[i] /= static_cast<double>(params.freq_factors[i]);
  }
  return freqs;
}

RopeTable BuildRopeTable(const RopeTableParams& params) {
  const int64_t pairs = params.head_dim / 2;
  RopeTable table;
  table.inverse_freqs = RopeInverseFrequencies(params);
  table.cos.resize(params.max_position * pairs);
  table.sin.resize(params.max_position * pairs);
  for (int64_t position = 0; position < params.max_position; ++position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const SinCos value = SinCos64(static_cast<double>(position) * table.inverse_freqs[i]);
      table.cos[position * pairs + i] = static_cast<float>(value.cos);
      table.sin[position * pairs + i] = static_cast<float>(value.sin);
    }
  }
  return table;
}

}  // namespace verbatim::numerics
