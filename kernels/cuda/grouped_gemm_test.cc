// Products of a mixture's experts: PORTABLE has the CPU's bits; in PINNED a row has the bits of
// Gemm however many rows its expert got.
#include <gmock/gmock.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

constexpr CudaBackendOptions kSmall{.weight_block_bytes = 0,
                                    .workspace_bytes = 1 << 16,
                                    .table_bytes = 4096,
                                    .expert_table_bytes = 1 << 16,
                                    .staging_slot_bytes = 4096,
                                    .sampling_scratch_bytes = 4096,
                                    .sampling_list_bytes = 4096};

class GroupedGemmTest : public BackendPairTest {
 protected:
  using Matrices = std::vector<std::unique_ptr<WeightMatrix>>;
  struct Case {
    std::vector<std::vector<StoredMatrix>> experts;  // each one's parts
    std::vector<int32_t> counts;                     // places of each expert
    bool gather = true;
    int64_t x_rows = 0;  // with gather
    int64_t unused_places = 0;
    NumericMode mode;
    bool round = false;

    int64_t places() const {
      int64_t sum = 0;
      for (int32_t c : counts) sum += c;
      return sum;
    }
    int64_t rows() const {
      int64_t sum = 0;
      for (const StoredMatrix& part : experts[0]) sum += part.rows;
      return sum;
    }
    int64_t cols() const { return experts[0][0].cols; }
    // A place's row of x: rows repeat, and lie in no order.
    int32_t RowOf(int64_t place) const {
      return static_cast<int32_t>(gather ? place * 7 % x_rows : place);
    }
    int64_t RowsOfX() const { return gather ? x_rows : places(); }
    std::vector<float> X() const { return RandomFloats(RowsOfX() * cols(), 61); }
  };

  static Matrices Load(Backend& backend, const Case& c) {
    Matrices matrices;
    for (const auto& parts : c.experts) {
      auto matrix = backend.LoadMatrix(parts, {});
      EXPECT_TRUE(matrix.ok()) << matrix.status();
      matrices.push_back(*std::move(matrix));
    }
    return matrices;
  }
  static std::vector<const WeightMatrix*> Pointers(const Matrices& matrices) {
    std::vector<const WeightMatrix*> pointers;
    for (const auto& matrix : matrices) pointers.push_back(matrix.get());
    return pointers;
  }
  static std::vector<int32_t> Offsets(const Case& c) {
    std::vector<int32_t> offsets = {0};
    for (int32_t count : c.counts) offsets.push_back(offsets.back() + count);
    return offsets;
  }
  // [places + unused places, rows + 2]: padding and unused places are poison.
  static std::vector<float> Run(Backend& backend, const Case& c, const Matrices& matrices) {
    Arrays arrays(backend);
    const int64_t places = c.places() + c.unused_places, y_stride = c.rows() + 2;
    std::vector<int32_t> rows;
    for (int64_t p = 0; p < c.places(); ++p) rows.push_back(c.RowOf(p));
    rows.resize(places, 1 << 30);  // not to be looked at
    const int64_t x_stride = c.cols() + 3;
    const std::vector<float> x = c.X();
    std::vector<float> strided(c.RowsOfX() * x_stride, std::nanf(""));
    for (int64_t r = 0; r < c.RowsOfX(); ++r) {
      std::copy_n(x.begin() + r * c.cols(), c.cols(), strided.begin() + r * x_stride);
    }
    float* y = arrays.Poisoned(places * y_stride);
    const std::vector<const WeightMatrix*> weights = Pointers(matrices);
    const absl::Status status = backend.GroupedGemm({.mode = c.mode,
                                                     .weights = weights,
                                                     .offsets = arrays.Put(Offsets(c)),
                                                     .max_places = places,
                                                     .x = arrays.Put(strided),
                                                     .x_rows = c.RowsOfX(),
                                                     .x_stride = x_stride,
                                                     .rows = c.gather ? arrays.Put(rows) : nullptr,
                                                     .y = y,
                                                     .y_stride = y_stride,
                                                     .round_output = c.round});
    EXPECT_TRUE(status.ok()) << status;
    return arrays.Get(y, places * y_stride);
  }
  static std::vector<float> Run(Backend& backend, const Case& c) {
    return Run(backend, c, Load(backend, c));
  }
  // The same by Gemm of each row alone.
  static std::vector<float> Alone(Backend& backend, const Case& c, const Matrices& matrices) {
    Arrays arrays(backend);
    const int64_t places = c.places() + c.unused_places, y_stride = c.rows() + 2;
    const float* x = arrays.Put(c.X());
    float* y = arrays.Poisoned(places * y_stride);
    int64_t place = 0;
    for (size_t e = 0; e < c.counts.size(); ++e) {
      for (int32_t i = 0; i < c.counts[e]; ++i, ++place) {
        const absl::Status status = backend.Gemm({.mode = c.mode,
                                                  .weight = matrices[e].get(),
                                                  .tokens = 1,
                                                  .x = x + c.RowOf(place) * c.cols(),
                                                  .x_stride = c.cols(),
                                                  .y = y + place * y_stride,
                                                  .y_stride = y_stride,
                                                  .round_output = c.round});
        EXPECT_TRUE(status.ok()) << status;
      }
    }
    return arrays.Get(y, places * y_stride);
  }
  // Every schedule gives the bits of each row alone.
  void ExpectBitsOfRowsAlone(const Case& c) {
    const Matrices matrices = Load(*cuda_, c);
    const std::vector<float> alone = Alone(*cuda_, c, matrices);
    for (int s = 0; s < test_device::Schedules(); ++s) {
      const std::string name = test_device::UseSchedule(s);
      EXPECT_TRUE(SameBits(alone, Run(*cuda_, c, matrices))) << name;
    }
    test_device::UseSchedule(0);
  }
};

std::vector<cpu::TestMatrix> RandomMatrices(DType format, int64_t count, int64_t rows, int64_t cols,
                                            uint32_t seed) {
  std::vector<cpu::TestMatrix> matrices;
  for (int64_t e = 0; e < count; ++e) {
    matrices.push_back(cpu::RandomMatrix(format, rows, cols, seed + static_cast<uint32_t>(e)));
  }
  return matrices;
}
std::vector<std::vector<StoredMatrix>> AsExperts(const std::vector<cpu::TestMatrix>& matrices) {
  std::vector<std::vector<StoredMatrix>> experts;
  for (const cpu::TestMatrix& matrix : matrices) experts.push_back({matrix.stored});
  return experts;
}

constexpr NumericMode kPinnedMode{Policy::kPinned};

TEST_F(GroupedGemmTest, PortableHasTheCpusBitsInEveryFormat) {
  for (DType format : cpu::kAllDTypes) {
    const int64_t cols = InfoOf(format).block_elements == 256 ? 256 : 288;
    const auto matrices = RandomMatrices(format, 4, 40, cols, 62);
    for (const std::vector<int32_t>& counts :
         {std::vector<int32_t>{1, 0, 1, 1}, std::vector<int32_t>{5, 0, 20, 1}}) {
      SCOPED_TRACE(absl::StrCat(std::string(InfoOf(format).name), ", ", counts[0]));
      const Case c{.experts = AsExperts(matrices), .counts = counts, .x_rows = 9};
      ExpectSameBits([&](Backend& backend) { return Run(backend, c); });
    }
  }
}

TEST_F(GroupedGemmTest, PortableHasTheCpusBitsForEveryCount) {
  const auto matrices = RandomMatrices(DType::kBF16, 40, 33, 160, 63);
  for (const std::vector<int32_t>& counts :
       {std::vector<int32_t>{0}, std::vector<int32_t>{130}, std::vector<int32_t>{2, 16, 17, 64, 65},
        std::vector<int32_t>{0, 0, 3, 0, 0, 70, 0}, std::vector<int32_t>(40, 2)}) {
    for (bool gather : {true, false}) {
      SCOPED_TRACE(absl::StrCat(counts.size(), " experts, gather ", gather));
      const std::vector<cpu::TestMatrix> some(matrices.begin(), matrices.begin() + counts.size());
      const Case c{.experts = AsExperts(some),
                   .counts = counts,
                   .gather = gather,
                   .x_rows = 11,
                   .unused_places = 3};
      if (!gather && c.places() == 0) continue;
      ExpectSameBits([&](Backend& backend) { return Run(backend, c); });
    }
  }
}

TEST_F(GroupedGemmTest, EveryCountHasTheBitsOfARowAlone) {
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    for (int64_t cols : {96, 416}) {
      if (test_device::Slow() && cols > 96) continue;
      const auto matrices = RandomMatrices(DType::kQ4_1, 3, 150, cols, 64);
      for (int32_t count : {1, 7, 8, 9, 15, 16, 17, 32, 33, 63, 64, 65, 130}) {
        if (policy == Policy::kPortable && count > 65) continue;
        SCOPED_TRACE(absl::StrCat("policy ", std::string(NameOf(policy)), ", ", cols, " columns, ",
                                  count, " places"));
        ExpectBitsOfRowsAlone({.experts = AsExperts(matrices),
                               .counts = {3, count, 0},
                               .x_rows = 10,
                               .unused_places = 2,
                               .mode = {policy}});
      }
    }
  }
}

TEST_F(GroupedGemmTest, PinnedTilesOf128Places) {
  const auto matrices = RandomMatrices(DType::kBF16, 2, 140, 288, 65);
  for (bool gather : {true, false}) {
    ExpectBitsOfRowsAlone({.experts = AsExperts(matrices),
                           .counts = {20, 150},
                           .gather = gather,
                           .x_rows = 50,
                           .mode = kPinnedMode});
  }
}

TEST_F(GroupedGemmTest, FewPlacesOfManyExperts) {
  const auto matrices = RandomMatrices(DType::kQ8_0, 70, 40, 64, 66);
  std::vector<int32_t> counts(70, 0);
  for (int e : {3, 31, 32, 33, 64, 69}) counts[e] = e % 4 + 1;
  Case c{.experts = AsExperts(matrices), .counts = counts, .x_rows = 5};
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    c.mode = {policy};
    ExpectBitsOfRowsAlone(c);
  }
  // Experts have PINNED's kernels under THROUGHPUT, whose dense products are the library's.
  const std::vector<float> pinned = Run(*cuda_, c);
  c.mode = {Policy::kThroughput};
  EXPECT_TRUE(SameBits(pinned, Run(*cuda_, c)));
}

TEST_F(GroupedGemmTest, FormatsMayDifferBetweenExpertsAndParts) {
  const cpu::TestMatrix a = cpu::RandomMatrix(DType::kQ4_1, 48, 256, 67);
  const cpu::TestMatrix b = cpu::RandomMatrix(DType::kQ6_K, 20, 256, 68);
  const cpu::TestMatrix c = cpu::RandomMatrix(DType::kQ4_1, 20, 256, 69);
  const cpu::TestMatrix d = cpu::RandomMatrix(DType::kF32, 68, 256, 70);
  Case mixed{.experts = {{a.stored, b.stored}, {a.stored, c.stored}, {d.stored}},
             .counts = {3, 20, 5},
             .x_rows = 8};
  ExpectSameBits([&](Backend& backend) { return Run(backend, mixed); });
  mixed.mode = kPinnedMode;
  ExpectBitsOfRowsAlone(mixed);
}

TEST_F(GroupedGemmTest, ThroughputRoundsItsOutput) {
  const auto matrices = RandomMatrices(DType::kBF16, 2, 40, 96, 71);
  ExpectBitsOfRowsAlone({.experts = AsExperts(matrices),
                         .counts = {2, 19},
                         .x_rows = 5,
                         .mode = {Policy::kThroughput, ActivationType::kBF16},
                         .round = true});
}

TEST_F(GroupedGemmTest, NeighboursDoNotMeet) {
  const auto matrices = RandomMatrices(DType::kBF16, 2, 40, 160, 72);
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    const Case c{
        .experts = AsExperts(matrices), .counts = {3, 20}, .gather = false, .mode = {policy}};
    const Matrices loaded = Load(*cuda_, c);
    const auto run = [&](const std::vector<float>& x) {
      Arrays arrays(*cuda_);
      float* y = arrays.Poisoned(23 * 40);
      const std::vector<const WeightMatrix*> weights = Pointers(loaded);
      EXPECT_TRUE(cuda_
                      ->GroupedGemm({.mode = c.mode,
                                     .weights = weights,
                                     .offsets = arrays.Put(Offsets(c)),
                                     .max_places = 23,
                                     .x = arrays.Put(x),
                                     .x_rows = 23,
                                     .x_stride = 160,
                                     .y = y,
                                     .y_stride = 40})
                      .ok());
      return arrays.Get(y, 23 * 40);
    };
    std::vector<float> x = c.X();
    const std::vector<float> before = run(x);
    for (int64_t place : {1, 7}) {
      for (int64_t k = 0; k < 160; ++k) x[place * 160 + k] = k % 2 == 0 ? std::nanf("") : INFINITY;
    }
    const std::vector<float> after = run(x);
    for (int64_t place = 0; place < 23; ++place) {
      const auto row = [&](const std::vector<float>& y) {
        return std::vector<float>(y.begin() + place * 40, y.begin() + (place + 1) * 40);
      };
      if (place == 1 || place == 7) {
        EXPECT_TRUE(std::isnan(row(after)[0]));
      } else {
        EXPECT_TRUE(SameBits(row(before), row(after))) << place;
      }
    }
  }
}

TEST_F(GroupedGemmTest, PlacesInSlicesOfASmallWorkspace) {
  const auto matrices = RandomMatrices(DType::kBF16, 3, 40, 256, 73);
  for (bool gather : {true, false}) {
    const Case c{.experts = AsExperts(matrices),
                 .counts = {30, 1, 40},
                 .gather = gather,
                 .x_rows = 60,
                 .unused_places = 5,
                 .mode = kPinnedMode};
    const std::vector<float> whole = Run(*cuda_, c);
    CudaBackendOptions options = kSmall;
    options.workspace_bytes = 25 * 256 * 2;
    auto small = CudaBackend::Create(options);
    ASSERT_TRUE(small.ok());
    EXPECT_TRUE(SameBits(whole, Run(**small, c))) << "gather " << gather;
  }
}

// Tables that do not all fit, and matrices that go and come back at the same address.
TEST_F(GroupedGemmTest, TablesAreThoseOfTheMatricesGiven) {
  CudaBackendOptions options = kSmall;
  options.expert_table_bytes = 300;
  auto small = CudaBackend::Create(options);
  ASSERT_TRUE(small.ok());
  const auto first = RandomMatrices(DType::kF32, 3, 33, 40, 74);
  const auto second = RandomMatrices(DType::kF32, 3, 33, 40, 78);
  const Case a{.experts = AsExperts(first), .counts = {1, 2, 3}, .x_rows = 4};
  const Case b{.experts = AsExperts(second), .counts = {1, 2, 3}, .x_rows = 4};
  const std::vector<float> expected_a = Run(*cpu_, a), expected_b = Run(*cpu_, b);
  // With the bf16 copies in between.
  const Case pinned{
      .experts = AsExperts(first), .counts = {1, 2, 3}, .x_rows = 4, .mode = kPinnedMode};
  {
    const Matrices loaded = Load(*cuda_, a);
    EXPECT_TRUE(SameBits(expected_a, Run(*cuda_, a, loaded)));
    EXPECT_TRUE(SameBits(Alone(*cuda_, pinned, loaded), Run(*cuda_, pinned, loaded)));
    EXPECT_TRUE(SameBits(expected_a, Run(*cuda_, a, loaded)));
  }
  {
    const Matrices loaded_a = Load(**small, a), loaded_b = Load(**small, b);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(SameBits(expected_a, Run(**small, a, loaded_a)));
      EXPECT_TRUE(SameBits(expected_b, Run(**small, b, loaded_b)));
      EXPECT_TRUE(SameBits(expected_b, Run(**small, b, loaded_b)));
    }
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(SameBits(expected_a, Run(**small, a)));
    EXPECT_TRUE(SameBits(expected_b, Run(**small, b)));
  }
}

TEST_F(GroupedGemmTest, ValuesThatOnlyKernelsSeeAreReportedOnce) {
  const auto matrices = RandomMatrices(DType::kF32, 2, 33, 40, 79);
  const Case c{.experts = AsExperts(matrices), .counts = {2, 2}, .x_rows = 4};
  const Matrices loaded = Load(*cuda_, c);
  const std::vector<const WeightMatrix*> weights = Pointers(loaded);
  const std::vector<float> good = Run(*cuda_, c, loaded);
  const struct {
    std::vector<int32_t> offsets, rows;
    int64_t x_rows = 4;
  } bad[] = {{{0, 2, 4}, {0, 4, 2, 1}},    {{0, 2, 4}, {0, -1, 2, 1}}, {{0, 2, 5}, {0, 3, 2, 1}},
             {{0, 3, 2}, {0, 3, 2, 1}},    {{1, 2, 4}, {0, 3, 2, 1}},  {{0, 2, 4}, {}, 3},
             {{0, -9, 4}, {0, 3, 2, 1}, 4}};
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    for (const auto& values : bad) {
      Arrays arrays(*cuda_);
      ASSERT_TRUE(
          cuda_
              ->GroupedGemm({.mode = {policy},
                             .weights = weights,
                             .offsets = arrays.Put(values.offsets),
                             .max_places = 4,
                             .x = arrays.Put(RandomFloats(4 * 40, 80)),
                             .x_rows = values.x_rows,
                             .x_stride = 40,
                             .rows = values.rows.empty() ? nullptr : arrays.Put(values.rows),
                             .y = arrays.Poisoned(4 * 33),
                             .y_stride = 33})
              .ok());
      const absl::Status status = cuda_->Synchronize();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("GroupedGemm"));
      EXPECT_TRUE(cuda_->Synchronize().ok());
    }
  }
  EXPECT_TRUE(SameBits(good, Run(*cuda_, c, loaded)));
}

TEST_F(GroupedGemmTest, ShapesThatContradictEachOtherAreRefused) {
  const auto matrices = RandomMatrices(DType::kF32, 2, 33, 40, 80);
  const auto other = RandomMatrices(DType::kF32, 1, 33, 41, 80);
  const Case c{.experts = AsExperts(matrices), .counts = {2, 2}, .x_rows = 4};
  const Matrices loaded = Load(*cuda_, c), wider = Load(*cuda_, {.experts = AsExperts(other)});
  const Matrices of_the_cpu = Load(*cpu_, c);
  float x[200] = {};
  int32_t offsets[3] = {};
  const auto message = [&](const std::vector<const WeightMatrix*>& weights, auto change) {
    GroupedGemmParams params{.weights = weights,
                             .offsets = offsets,
                             .max_places = 4,
                             .x = x,
                             .x_rows = 4,
                             .x_stride = 40,
                             .y = x,
                             .y_stride = 33};
    change(params);
    const absl::Status status = cuda_->GroupedGemm(params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const auto as_it_is = [](GroupedGemmParams&) {};
  const std::vector<const WeightMatrix*> good = Pointers(loaded);
  EXPECT_THAT(message({}, as_it_is), HasSubstr("0 weights"));
  EXPECT_THAT(message({good[0], nullptr}, as_it_is), HasSubstr("weights[1]"));
  EXPECT_THAT(message({of_the_cpu[0].get()}, as_it_is), HasSubstr("weights[0]"));
  EXPECT_THAT(message({good[0], wider[0].get()}, as_it_is), HasSubstr("weights[1] is [33, 41]"));
  EXPECT_THAT(message(good, [](GroupedGemmParams& p) { p.max_places = -1; }),
              HasSubstr("max_places -1"));
  EXPECT_THAT(message(good, [](GroupedGemmParams& p) { p.x_stride = 39; }),
              HasSubstr("x_stride 39"));
  EXPECT_THAT(message(good, [](GroupedGemmParams& p) { p.y_stride = 32; }),
              HasSubstr("y_stride 32"));
  EXPECT_THAT(message(good, [](GroupedGemmParams& p) { p.x_rows = 0; }), HasSubstr("x_rows 0"));
  EXPECT_THAT(message(good, [](GroupedGemmParams& p) { p.offsets = nullptr; }),
              HasSubstr("offsets"));
  CudaBackendOptions options = kSmall;
  options.expert_table_bytes = 100;
  auto small = CudaBackend::Create(options);
  ASSERT_TRUE(small.ok());
  const Matrices there = Load(**small, c);
  const std::vector<const WeightMatrix*> weights = Pointers(there);
  const absl::Status status = (*small)->GroupedGemm({.weights = weights});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("128 bytes"));
}

}  // namespace
}  // namespace verbatim::kernels::cuda
