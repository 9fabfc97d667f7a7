// The choice between the two forms of pinned products, on emulated devices with and without wgmma,
// and on one whose wgmma sums otherwise than its mma.sync.
#include "kernels/cuda/pinned_gemm_form.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"
#include "simt/emulator.h"
#include "simt/faults.h"
#include "simt/warpgroup.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PinnedGemmFormTest : public testing::Test {
 protected:
  void SetUp() override { simt_faults::SetComputeCapability(9); }
  void TearDown() override {
    simt_faults::SetComputeCapability(0);
    simt::SumProductsDescending(false);
    simt_faults::Heal();
  }

  // Rows of 576 columns that the workspace holds.
  static constexpr int32_t kWorkspaceRows = 160;
  static std::unique_ptr<Backend> Open(bool wgmma = true) {
    auto backend = CudaBackend::Create({.wgmma = wgmma,
                                        .weight_block_bytes = 0,
                                        .workspace_bytes = kWorkspaceRows * 576 * 2,
                                        .table_bytes = 1 << 16,
                                        .staging_slot_bytes = 4096,
                                        .sampling_scratch_bytes = 1 << 20,
                                        .sampling_list_bytes = 1 << 20});
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }

  // A backend with wgmma that several tests use: its comparisons at start take seconds here.
  static Backend& OneWithWgmma() {
    static const std::unique_ptr<Backend> backend = Open();
    return *backend;
  }

  // One product of so many tokens, residual included.
  static std::vector<float> Product(Backend& backend, int64_t tokens, int64_t cols = 576) {
    const int64_t rows = 60;
    const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 1);
    auto weight = backend.LoadMatrix({&w.stored, 1}, {});
    EXPECT_TRUE(weight.ok()) << weight.status();
    Arrays arrays(backend);
    float* y = arrays.Put(RandomFloats(tokens * rows, 2));
    EXPECT_TRUE(backend
                    .Gemm({.mode = {Policy::kPinned},
                           .weight = weight->get(),
                           .tokens = tokens,
                           .x = arrays.Put(RandomFloats(tokens * cols, 3)),
                           .x_stride = cols,
                           .y = y,
                           .y_stride = rows,
                           .residual = y})
                    .ok());
    return arrays.Get(y, tokens * rows);
  }
  // Products of two experts, one of which has 40 of so many places. `gather`: places' rows lie in
  // no order.
  static std::vector<float> ExpertsProduct(Backend& backend, int32_t places, bool gather = true,
                                           int64_t cols = 576) {
    const int64_t rows = 60, tokens = gather ? 50 : places;
    std::vector<std::unique_ptr<WeightMatrix>> matrices;
    std::vector<const WeightMatrix*> weights;
    for (uint32_t seed : {5u, 6u}) {
      const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, seed);
      auto weight = backend.LoadMatrix({&w.stored, 1}, {.for_experts = true});
      EXPECT_TRUE(weight.ok()) << weight.status();
      matrices.push_back(*std::move(weight));
      weights.push_back(matrices.back().get());
    }
    std::vector<int32_t> row_of;
    for (int32_t place = 0; place < places; ++place) row_of.push_back(place * 7 % 50);
    Arrays arrays(backend);
    float* y = arrays.Poisoned(places * rows);
    EXPECT_TRUE(
        backend
            .GroupedGemm({.mode = {Policy::kPinned},
                          .weights = weights,
                          .offsets = arrays.Put(std::vector<int32_t>{0, places - 40, places}),
                          .max_places = places,
                          .x = arrays.Put(RandomFloats(tokens * cols, 7)),
                          .x_rows = tokens,
                          .x_stride = cols,
                          .rows = gather ? arrays.Put(row_of) : nullptr,
                          .y = y,
                          .y_stride = rows})
            .ok());
    return arrays.Get(y, places * rows);
  }
};

TEST_F(PinnedGemmFormTest, EveryFormHasTheSameBits) {
  Backend* const with = &OneWithWgmma();
  auto without = Open(false);
  EXPECT_THAT(with->Describe(), HasSubstr(", pinned products of many tokens by wgmma"));
  EXPECT_THAT(without->Describe(), HasSubstr(", pinned products by mma.sync alone (as asked)"));
  EXPECT_EQ(*with->NumericsTag(Policy::kPinned), *without->NumericsTag(Policy::kPinned));
  const std::vector<float> many = Product(*without, 150);
  EXPECT_TRUE(SameBits(many, Product(*with, 150)));
  // In the second slice there are too few places for warpgroups.
  EXPECT_TRUE(SameBits(ExpertsProduct(*without, kWorkspaceRows + 30),
                       ExpertsProduct(*with, kWorkspaceRows + 30)));
  EXPECT_TRUE(SameBits(ExpertsProduct(*without, 140, false), ExpertsProduct(*with, 140, false)));
}

// That wgmma is what runs: where its sums are spoilt after the comparison, so are the bits, from
// kLeastTokens tokens on and for shapes that it can compute.
TEST_F(PinnedGemmFormTest, ManyTokensAreComputedByWarpgroups) {
  Backend* const with = &OneWithWgmma();
  auto without = Open(false);
  const auto differ = [&](int64_t tokens, int64_t cols) {
    Product(*with, 1, cols);  // the shape has been compared
    simt::SumProductsDescending(true);
    const bool same = SameBits(Product(*without, tokens, cols), Product(*with, tokens, cols));
    simt::SumProductsDescending(false);
    return !same;
  };
  EXPECT_TRUE(differ(PinnedGemmForm::kLeastTokens, 576));
  EXPECT_FALSE(differ(PinnedGemmForm::kLeastTokens - 1, 576));
  EXPECT_FALSE(differ(PinnedGemmForm::kLeastTokens, 96));
}

// The same for experts, from as many places each as it pays for, whether rows are gathered or not.
TEST_F(PinnedGemmFormTest, ManyPlacesOfExpertsAreComputedByWarpgroups) {
  constexpr int32_t kFew = 2 * PinnedGemmForm::kFewPlacesEach;
  Backend* const with = &OneWithWgmma();
  auto without = Open(false);
  ExpertsProduct(*with, 50);  // the shape has been compared
  const auto differ = [&](int32_t places, bool gather, int64_t cols) {
    simt::SumProductsDescending(true);
    const bool same = SameBits(ExpertsProduct(*without, places, gather, cols),
                               ExpertsProduct(*with, places, gather, cols));
    simt::SumProductsDescending(false);
    return !same;
  };
  for (bool gather : {true, false}) {
    EXPECT_TRUE(differ(kFew + 1, gather, 576));
    EXPECT_FALSE(differ(kFew, gather, 576));
  }
  EXPECT_FALSE(differ(kFew + 1, true, 96));
}

TEST_F(PinnedGemmFormTest, ADeviceThatSumsOtherwiseKeepsToWarps) {
  simt::SumProductsDescending(true);
  auto backend = Open(), without = Open(false);
  EXPECT_THAT(backend->Describe(),
              HasSubstr("pinned products by mma.sync alone (wgmma gave other bits for 40 x 64, "
                        "tiles of 128 x 1: token "));
  EXPECT_TRUE(SameBits(Product(*without, 150), Product(*backend, 150)));
}

TEST_F(PinnedGemmFormTest, AMatrixThatDiffersEndsIt) {
  auto backend = Open(), without = Open(false);
  simt::SumProductsDescending(true);
  EXPECT_TRUE(SameBits(Product(*without, 150), Product(*backend, 150)));
  EXPECT_THAT(backend->Describe(), HasSubstr("wgmma gave other bits for 60 x 576, tiles of "));
}

TEST_F(PinnedGemmFormTest, AnExpertThatDiffersEndsIt) {
  auto backend = Open(), without = Open(false);
  simt::SumProductsDescending(true);
  EXPECT_TRUE(SameBits(ExpertsProduct(*without, 140), ExpertsProduct(*backend, 140)));
  EXPECT_THAT(backend->Describe(),
              HasSubstr("wgmma gave other bits for 60 x 576, experts, tiles of "));
}

TEST_F(PinnedGemmFormTest, TheEnvironmentForbidsItToo) {
  setenv("VERBATIM_PINNED_GEMM", "mma", 1);
  auto backend = Open();
  unsetenv("VERBATIM_PINNED_GEMM");
  EXPECT_THAT(backend->Describe(), HasSubstr("mma.sync alone (as asked)"));
}

TEST_F(PinnedGemmFormTest, OtherDevicesHaveOneForm) {
  simt_faults::SetComputeCapability(8);
  auto backend = Open();
  EXPECT_THAT(backend->Describe(), Not(HasSubstr("pinned products")));
}

TEST_F(PinnedGemmFormTest, ADeviceThatFailsMeanwhileIsAnError) {
  for (int64_t operations : {1, 5, 20}) {
    simt_faults::FailDeviceAfter(operations, absl::InternalError("cuda: an illegal address"));
    const auto backend = CudaBackend::Create({.weight_block_bytes = 0,
                                              .workspace_bytes = 4096,
                                              .table_bytes = 4096,
                                              .staging_slot_bytes = 4096,
                                              .sampling_scratch_bytes = 4096,
                                              .sampling_list_bytes = 4096});
    EXPECT_THAT(std::string(backend.status().message()), HasSubstr("an illegal address"));
    if (operations == 20) {
      EXPECT_THAT(std::string(backend.status().message()),
                  HasSubstr("while wgmma was compared with mma.sync: --pinned-gemm mma"));
    }
    simt_faults::Heal();
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda
