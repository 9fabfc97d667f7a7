// A whole mixture-of-experts layer through the backend: a row alone and in a batch.
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/gemm_test_matrices.h"

namespace verbatim::kernels::cpu {
namespace {

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

// Router, permutation, both products, SwiGLU and the weighted sum, through the backend.
class MoeLayerTest : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {
 protected:
  static constexpr int64_t kHidden = 160, kInner = 96;
  const int64_t experts_ = std::get<0>(GetParam()), top_k_ = std::get<1>(GetParam());

  struct Weights {
    std::unique_ptr<WeightMatrix> router;
    std::vector<std::unique_ptr<WeightMatrix>> gate_up, down;
    std::vector<const WeightMatrix*> gate_up_of, down_of;
  };
  TestMatrix router_ = RandomMatrix(DType::kF32, experts_, kHidden, 51);
  std::vector<TestMatrix> gate_up_, down_;

  void SetUp() override {
    for (int64_t e = 0; e < experts_; ++e) {
      const uint32_t seed = 60 + 2 * static_cast<uint32_t>(e);
      gate_up_.push_back(RandomMatrix(DType::kQ4_1, 2 * kInner, kHidden, seed));
      down_.push_back(RandomMatrix(DType::kQ8_0, kHidden, kInner, seed + 1));
    }
  }
  Weights Load(Backend& backend) const {
    Weights w;
    const auto load = [&](const TestMatrix& m) {
      auto matrix = backend.LoadMatrix({m.stored}, {});
      EXPECT_TRUE(matrix.ok());
      return *std::move(matrix);
    };
    w.router = load(router_);
    for (int64_t e = 0; e < experts_; ++e) {
      w.gate_up.push_back(load(gate_up_[e]));
      w.down.push_back(load(down_[e]));
      w.gate_up_of.push_back(w.gate_up.back().get());
      w.down_of.push_back(w.down.back().get());
    }
    return w;
  }
  std::vector<float> Forward(Backend& backend, const Weights& w, const NumericMode& mode,
                             const std::vector<float>& x) const {
    const int64_t tokens = static_cast<int64_t>(x.size()) / kHidden, slots = tokens * top_k_;
    std::vector<float> logits(tokens * experts_), weights(slots), inner(slots * 2 * kInner),
        gated(slots * kInner), outputs(slots * kHidden), y(x.size());
    std::vector<int32_t> chosen(slots), offsets(experts_ + 1), token_of(slots), place_of(slots);
    EXPECT_TRUE(backend
                    .Gemm({.mode = {mode.policy, ActivationType::kF32},
                           .weight = w.router.get(),
                           .tokens = tokens,
                           .x = x.data(),
                           .x_stride = kHidden,
                           .y = logits.data(),
                           .y_stride = experts_})
                    .ok());
    EXPECT_TRUE(backend
                    .MoeRoute({.mode = mode,
                               .logits = logits.data(),
                               .tokens = tokens,
                               .num_experts = experts_,
                               .top_k = top_k_,
                               .experts = chosen.data(),
                               .weights = weights.data()})
                    .ok());
    EXPECT_TRUE(backend
                    .MoePermute({chosen.data(), tokens, experts_, top_k_, offsets.data(),
                                 token_of.data(), place_of.data()})
                    .ok());
    EXPECT_TRUE(backend
                    .GroupedGemm({.mode = mode,
                                  .weights = w.gate_up_of,
                                  .offsets = offsets.data(),
                                  .max_places = slots,
                                  .x = x.data(),
                                  .x_rows = tokens,
                                  .x_stride = kHidden,
                                  .rows = token_of.data(),
                                  .y = inner.data(),
                                  .y_stride = 2 * kInner})
                    .ok());
    EXPECT_TRUE(backend
                    .SwiGlu({.mode = mode,
                             .gate_up = inner.data(),
                             .y = gated.data(),
                             .tokens = slots,
                             .cols = kInner})
                    .ok());
    EXPECT_TRUE(backend
                    .GroupedGemm({.mode = mode,
                                  .weights = w.down_of,
                                  .offsets = offsets.data(),
                                  .max_places = slots,
                                  .x = gated.data(),
                                  .x_rows = slots,
                                  .x_stride = kInner,
                                  .y = outputs.data(),
                                  .y_stride = kHidden})
                    .ok());
    EXPECT_TRUE(backend
                    .MoeCombine({.mode = mode,
                                 .expert_rows = outputs.data(),
                                 .place_of = place_of.data(),
                                 .weights = weights.data(),
                                 .tokens = tokens,
                                 .top_k = top_k_,
                                 .cols = kHidden,
                                 .residual = x.data(),
                                 .y = y.data()})
                    .ok());
    return y;
  }
};

TEST_P(MoeLayerTest, ARowAloneEqualsThatRowInABatch) {
  const int64_t tokens = 61;
  const std::vector<float> x = RandomValues(tokens * kHidden, 52);
  std::vector<float> portable;
  for (const Isa isa : AvailableIsas()) {
    for (const int threads : {1, 2, 3}) {
      CpuBackendOptions options;
      options.isa = isa;
      options.threads = threads;
      auto backend = CpuBackend::Create(options);
      ASSERT_TRUE(backend.ok());
      const Weights w = Load(**backend);
      for (const Policy policy : {Policy::kPortable, Policy::kPinned}) {
        const NumericMode mode{policy, ActivationType::kF32};
        const std::vector<float> together = Forward(**backend, w, mode, x);
        if (policy == Policy::kPortable) {
          if (portable.empty()) portable = together;
          ASSERT_EQ(std::memcmp(portable.data(), together.data(), portable.size() * 4), 0)
              << NameOf(isa) << ", " << threads << " threads";
        }
        for (int64_t t = 0; t < tokens; t += 6) {
          const std::vector<float> alone =
              Forward(**backend, w, mode, {&x[t * kHidden], &x[t * kHidden] + kHidden});
          ASSERT_EQ(std::memcmp(alone.data(), &together[t * kHidden], kHidden * 4), 0)
              << NameOf(isa) << ", " << threads << " threads, row " << t;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MoeLayerTest,
                         testing::Values(std::tuple(8, 2), std::tuple(4, 4), std::tuple(1, 1),
                                         std::tuple(40, 8)),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) + "Experts" +
                                  std::to_string(std::get<1>(info.param)) + "PerToken";
                         });

}  // namespace
}  // namespace verbatim::kernels::cpu
