// The experts' products: with the strong policies each place has the bits of that row multiplied
// alone; the throughput paths against the double product.
#include "kernels/cpu/grouped_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr float kPoison = -12345.5f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

int64_t RoundUp(int64_t k, int64_t block) { return (k + block - 1) / block * block; }

// Experts of one shape with random weights.
struct Experts {
  std::vector<TestMatrix> stored;
  std::vector<std::unique_ptr<PackedMatrix>> packed;
  std::vector<const WeightMatrix*> pointers;

  Experts(const CpuContext& context, const std::vector<DType>& formats, int64_t n, int64_t k,
          uint32_t seed, const GemmOptions& options = {}) {
    for (const DType dtype : formats) {
      stored.push_back(RandomMatrix(dtype, n, k, ++seed));
      auto matrix = PackMatrix(context, {stored.back().stored}, {}, options);
      EXPECT_TRUE(matrix.ok()) << matrix.status();
      packed.push_back(*std::move(matrix));
      pointers.push_back(packed.back().get());
    }
  }
};

// Rows of x and who reads them; rows that nobody reads, and what lies between rows, are NaN.
struct Inputs {
  int64_t k, x_rows, x_stride, y_stride, places;
  std::vector<int32_t> offsets = {0}, rows;
  std::vector<float> x;

  Inputs(const std::vector<int64_t>& counts, int64_t n, int64_t k, uint32_t seed)
      : k(k), x_stride(k + 3), y_stride(n + 5) {
    std::mt19937 random(seed);
    for (const int64_t count : counts) {
      offsets.push_back(offsets.back() + static_cast<int32_t>(count));
    }
    places = offsets.back();
    x_rows = places + 3;
    // Ascending for some experts, as from MoePermute; in any order, with repetitions, for others.
    for (size_t e = 0; e < counts.size(); ++e) {
      for (int64_t i = 0; i < counts[e]; ++i) {
        rows.push_back(static_cast<int32_t>(random() % x_rows));
      }
      if (e % 2 == 0) std::sort(rows.end() - counts[e], rows.end());
    }
    rows.resize(places + 2, -1);  // beyond the last place nothing is read
    x.assign(x_rows * x_stride, kNan);
    const std::vector<float> values = RandomValues(x_rows * k, seed);
    for (int64_t p = 0; p < places; ++p) {
      std::copy_n(&values[rows[p] * k], k, &x[rows[p] * x_stride]);
    }
  }
  GroupedGemmParams Params(const Experts& experts, const NumericMode& mode, float* y) const {
    GroupedGemmParams params;
    params.mode = mode;
    params.weights = experts.pointers;
    params.offsets = offsets.data();
    params.max_places = places + 2;
    params.x = x.data();
    params.x_rows = x_rows;
    params.x_stride = x_stride;
    params.rows = rows.data();
    params.y = y;
    params.y_stride = y_stride;
    return params;
  }
};

std::vector<float> Grouped(const CpuContext& context, const NumericMode& mode,
                           const Experts& experts, const Inputs& in) {
  std::vector<float> y((in.places + 2) * in.y_stride, kPoison);
  const absl::Status status = GroupedGemm(context, in.Params(experts, mode, y.data()));
  EXPECT_TRUE(status.ok()) << status;
  return y;
}

std::vector<float> Alone(const CpuContext& context, const NumericMode& mode,
                         const PackedMatrix& weight, const float* x) {
  std::vector<float> y(weight.rows());
  GemmParams params;
  params.mode = mode;
  params.weight = &weight;
  params.tokens = 1;
  params.x = x;
  params.x_stride = weight.cols();
  params.y = y.data();
  params.y_stride = weight.rows();
  EXPECT_TRUE(Gemm(context, params).ok());
  return y;
}

class GroupedGemmFormatTest : public testing::TestWithParam<DType> {};

TEST_P(GroupedGemmFormatTest, EveryPlaceHasTheBitsOfItsRowAlone) {
  const DType dtype = GetParam();
  const std::vector<std::vector<int64_t>> all_counts = {
      {1, 0, 1, 0, 0, 0},     {0, 0, 0, 0, 9, 0}, {0, 3, 7, 1, 0, 13},
      {110, 2, 0, 40, 6, 12}, {0, 0, 0, 0, 0, 0},
  };
  for (const int64_t columns : {33, 576}) {
    const int64_t n = 75, k = RoundUp(columns, InfoOf(dtype).block_elements);
    for (const Policy policy : {Policy::kPortable, Policy::kPinned}) {
      const NumericMode mode{policy, ActivationType::kF32};
      for (const Isa isa : AvailableIsas()) {
        if (isa == Isa::kScalar && columns > 33) continue;
        ThreadPool one(1), two(2), three(3);
        const Experts experts(CpuContext{&one, isa}, std::vector<DType>(6, dtype), n, k, 3);
        for (const std::vector<int64_t>& counts : all_counts) {
          const Inputs in(counts, n, k, 17);
          std::vector<std::vector<float>> alone;
          for (size_t e = 0; e < counts.size(); ++e) {
            for (int32_t p = in.offsets[e]; p < in.offsets[e + 1]; ++p) {
              alone.push_back(Alone(CpuContext{&one, isa}, mode, *experts.packed[e],
                                    &in.x[in.rows[p] * in.x_stride]));
            }
          }
          for (ThreadPool* pool : {&one, &two, &three}) {
            const std::vector<float> y = Grouped({pool, isa}, mode, experts, in);
            for (int64_t p = 0; p < in.places; ++p) {
              ASSERT_EQ(std::memcmp(&y[p * in.y_stride], alone[p].data(), n * 4), 0)
                  << NameOf(isa) << ", k " << k << ", place " << p << " of " << in.places << ", "
                  << pool->threads() << " threads";
            }
            for (int64_t i = 0; i < (in.places + 2) * in.y_stride; ++i) {
              if (i / in.y_stride >= in.places || i % in.y_stride >= n) {
                ASSERT_EQ(y[i], kPoison);
              }
            }
          }
        }
      }
    }
  }
}

float ToBf16(float x) { return numerics::RoundToBf16(x); }

// Tolerance as in gemm_throughput_test.cc.
TEST_P(GroupedGemmFormatTest, ThroughputIsCloseToTheDoubleProduct) {
  const DType dtype = GetParam();
  const int64_t n = 64, k = RoundUp(160, InfoOf(dtype).block_elements);
  ThreadPool pool(2);
  for (const bool library : {false, true}) {
    GemmOptions options;
    options.library_copies =
        library ? GemmOptions::LibraryCopies::kOnFirstUse : GemmOptions::LibraryCopies::kNever;
    options.library_min_tokens = library ? 5 : 0;  // so that experts of one call differ
    for (const Isa isa : AvailableIsas()) {
      const CpuContext context{&pool, isa};
      const Experts experts(context, std::vector<DType>(5, dtype), n, k, 5, options);
      for (const ActivationType type : {ActivationType::kF32, ActivationType::kBF16}) {
        const bool bf16 = type == ActivationType::kBF16;
        if (library && bf16 && isa != Isa::kAvx512) continue;
        Inputs in({1, 4, 0, 30, 5}, n, k, 19);
        if (bf16) {
          for (float& v : in.x) v = ToBf16(v);
        }
        std::vector<float> y((in.places + 2) * in.y_stride, kPoison);
        GroupedGemmParams params = in.Params(experts, {Policy::kThroughput, type}, y.data());
        params.round_output = bf16;
        const absl::Status status = GroupedGemm(context, params);
        ASSERT_TRUE(status.ok()) << status;
        for (size_t e = 0; e < experts.packed.size(); ++e) {
          const std::vector<float> w = Decoded(experts.stored[e].stored);
          double largest = 0;
          for (const float v : w) largest = std::max(largest, std::fabs(static_cast<double>(v)));
          for (int32_t p = in.offsets[e]; p < in.offsets[e + 1]; ++p) {
            const float* x = &in.x[in.rows[p] * in.x_stride];
            for (int64_t c = 0; c < n; ++c) {
              double exact = 0, x_norm = 0, magnitude = 0;
              for (int64_t i = 0; i < k; ++i) {
                const double xi = x[i], wi = w[c * k + i];
                exact += xi * wi;
                x_norm += std::fabs(xi);
                magnitude += std::fabs(xi * wi);
              }
              double tolerance =
                  2.0 * (k + 4) * std::ldexp(1.0, -24) * (3 * largest * x_norm + std::fabs(exact));
              if (library && bf16) tolerance += std::ldexp(magnitude, -8);
              if (bf16) tolerance += std::ldexp(std::fabs(exact), -8);
              const float got = y[p * in.y_stride + c];
              ASSERT_NEAR(got, exact, tolerance)
                  << NameOf(isa) << (bf16 ? " bf16" : "") << (library ? " library" : "")
                  << ": place " << p << ", column " << c;
              if (bf16) {
                ASSERT_EQ(got, ToBf16(got));
              }
            }
          }
        }
        for (int64_t i = 0; i < (in.places + 2) * in.y_stride; ++i) {
          if (i / in.y_stride >= in.places || i % in.y_stride >= n) {
            ASSERT_EQ(y[i], kPoison);
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupedGemmFormatTest, testing::ValuesIn(kAllDTypes),
                         [](const auto& info) { return std::string(InfoOf(info.param).name); });

TEST(GroupedGemmTest, ExpertsMayDifferInFormat) {
  ThreadPool pool(3);
  const CpuContext context{&pool, DetectIsa()};
  const int64_t n = 45, k = 256;
  const std::vector<DType> formats(std::begin(kAllDTypes), std::end(kAllDTypes));
  const Experts experts(context, formats, n, k, 23);
  const Inputs in({4, 1, 9, 0, 2, 30, 7, 3, 1, 13}, n, k, 24);
  for (const Policy policy : {Policy::kPortable, Policy::kPinned}) {
    const NumericMode mode{policy, ActivationType::kF32};
    const std::vector<float> y = Grouped(context, mode, experts, in);
    for (size_t e = 0; e < formats.size(); ++e) {
      for (int32_t p = in.offsets[e]; p < in.offsets[e + 1]; ++p) {
        const std::vector<float> alone =
            Alone(context, mode, *experts.packed[e], &in.x[in.rows[p] * in.x_stride]);
        ASSERT_EQ(std::memcmp(&y[p * in.y_stride], alone.data(), n * 4), 0)
            << InfoOf(formats[e]).name << ", place " << p;
      }
    }
  }
}

// Places that are rows of x themselves, as in the second product of an expert.
TEST(GroupedGemmTest, WithoutRowsAPlaceReadsItself) {
  ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const int64_t n = 33, k = 96;
  const Experts experts(context, std::vector<DType>(3, DType::kQ4_1), n, k, 29);
  Inputs in({5, 0, 14}, n, k, 30);
  for (int32_t p = 0; p < in.places; ++p) in.rows[p] = p;
  const std::vector<float> values = RandomValues(in.x.size(), 31);
  in.x = values;
  for (const Policy policy : {Policy::kPortable, Policy::kPinned, Policy::kThroughput}) {
    const NumericMode mode{policy, ActivationType::kBF16};
    const std::vector<float> indexed = Grouped(context, mode, experts, in);
    std::vector<float> y(indexed.size(), kPoison);
    GroupedGemmParams params = in.Params(experts, mode, y.data());
    params.rows = nullptr;
    ASSERT_TRUE(GroupedGemm(context, params).ok());
    EXPECT_EQ(std::memcmp(y.data(), indexed.data(), y.size() * 4), 0);
  }
}

TEST(GroupedGemmTest, ANanRowStaysAlone) {
  ThreadPool pool(2);
  const CpuContext context{&pool, DetectIsa()};
  const int64_t n = 40, k = 64;
  const Experts experts(context, std::vector<DType>(2, DType::kBF16), n, k, 37);
  Inputs in({20, 20}, n, k, 38);
  for (int32_t p = 0; p < 40; ++p) in.rows[p] = p % 20;
  in.x = RandomValues(in.x.size(), 39);
  in.x[7 * in.x_stride + 5] = kNan;
  for (const Policy policy : {Policy::kPortable, Policy::kPinned, Policy::kThroughput}) {
    const std::vector<float> y = Grouped(context, {policy, ActivationType::kBF16}, experts, in);
    for (int32_t p = 0; p < 40; ++p) {
      for (int64_t c = 0; c < n; ++c) {
        ASSERT_EQ(std::isnan(y[p * in.y_stride + c]), p % 20 == 7) << "place " << p;
      }
    }
  }
}

TEST(GroupedGemmTest, NamesWhatContradicts) {
  ThreadPool pool(1);
  const CpuContext context{&pool, Isa::kScalar};
  const Experts experts(context, std::vector<DType>(3, DType::kF32), 4, 8, 41);
  const Experts wider(context, {DType::kF32}, 4, 9, 41), taller(context, {DType::kF32}, 5, 8, 41);
  const Inputs in({2, 0, 1}, 4, 8, 42);
  std::vector<float> y((in.places + 2) * in.y_stride, kPoison);
  const auto refused = [&](const std::string& what, auto change) {
    Inputs changed = in;
    std::vector<const WeightMatrix*> weights = experts.pointers;
    GroupedGemmParams params = changed.Params(experts, {}, y.data());
    params.weights = weights;
    change(params, weights, changed);
    const absl::Status status = GroupedGemm(context, params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_NE(std::string(status.message()).find(what), std::string::npos) << status;
  };
  refused("weights has 0", [](auto& p, auto&, auto&) { p.weights = {}; });
  refused("weights[1] is null", [](auto&, auto& w, auto&) { w[1] = nullptr; });
  refused("weights[2] is [4, 9]", [&](auto&, auto& w, auto&) { w[2] = wider.pointers[0]; });
  refused("weights[2] is [5, 8]", [&](auto&, auto& w, auto&) { w[2] = taller.pointers[0]; });
  refused("offsets is null", [](auto& p, auto&, auto&) { p.offsets = nullptr; });
  refused("offsets[0] is 1", [](auto&, auto&, auto& i) { i.offsets[0] = 1; });
  refused("offsets[2] is 1", [](auto&, auto&, auto& i) { i.offsets[2] = 1; });
  refused("offsets[3] is 3, max_places is 2", [](auto& p, auto&, auto&) { p.max_places = 2; });
  refused("x or y is null", [](auto& p, auto&, auto&) { p.x = nullptr; });
  refused("x_stride 7", [](auto& p, auto&, auto&) { p.x_stride = 7; });
  refused("y_stride 3", [](auto& p, auto&, auto&) { p.y_stride = 3; });
  refused("rows[2] is 6", [](auto&, auto&, auto& i) { i.rows[2] = 6; });
  refused("rows[1] is -1", [](auto&, auto&, auto& i) { i.rows[1] = -1; });
  refused("x_rows is 2 for 3", [](auto& p, auto&, auto&) { p.rows = nullptr, p.x_rows = 2; });
  for (const float v : y) ASSERT_EQ(v, kPoison);
  auto unpacked = PackMatrix(context, {experts.stored[0].stored},
                             {.for_gemm = false, .for_embedding = true}, {});
  ASSERT_TRUE(unpacked.ok());
  refused("weights[0] was not loaded", [&](auto&, auto& w, auto&) { w[0] = unpacked->get(); });
}

}  // namespace
}  // namespace verbatim::kernels::cpu
