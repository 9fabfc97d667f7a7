// Random weights made by the device against those made by the host, and what a CPU computes with
// them.
#include "kernels/numerics/random_weights.h"

#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/backend_pair_test.h"
#include "kernels/cuda/cuda_matrix.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

class RandomWeightsTest : public BackendPairTest {
 protected:
  // The matrix's rows in the device's memory, padding included.
  std::vector<uint16_t> OnDevice(absl::Span<const StoredMatrix> parts) {
    auto loaded = cuda_->LoadMatrix(parts, {});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok()) return {};
    const PackedPart& part = dynamic_cast<const CudaMatrix&>(**loaded).bf16();
    std::vector<uint16_t> values(static_cast<size_t>(part.rows * RowPitch(part.cols)), 0x7fff);
    EXPECT_TRUE(cuda_->CopyToHost(values.data(), part.quants, values.size() * 2).ok());
    return values;
  }
  static std::vector<uint16_t> OnHost(absl::Span<const StoredMatrix> parts) {
    std::vector<uint16_t> values;
    for (const StoredMatrix& part : parts) {
      for (int64_t row = 0; row < part.rows; ++row) {
        const size_t at = values.size();
        values.resize(at + static_cast<size_t>(RowPitch(part.cols)));
        numerics::MakeRandomWeights(*part.random, row * part.cols, part.cols, values.data() + at);
      }
    }
    return values;
  }
};

TEST_F(RandomWeightsTest, DevicesAndHostsMakeTheSameBits) {
  struct Case {
    int64_t rows, cols;
    numerics::RandomWeights weights;
  };
  // Odd sizes, rows that begin inside a block of words, places beyond 32 bits of elements and of
  // blocks.
  const Case cases[] = {{1, 1, {.seed = 1, .matrix = 2}},
                        {3, 64, {.seed = 0x123456789abcdef0, .matrix = 3}},
                        {5, 129, {.seed = 5, .matrix = 0xfedcba9876543210}},
                        {33, 77, {.seed = 6, .matrix = 7, .first = 3}},
                        {2, 70, {.seed = 6, .matrix = 7, .first = (int64_t{1} << 32) - 71}},
                        {9, 31, {.seed = 6, .matrix = 7, .first = (int64_t{1} << 34) - 100}},
                        {4, 100, {.seed = 6, .matrix = 7, .first = (int64_t{1} << 40) + 1}}};
  for (const Case& c : cases) {
    const StoredMatrix matrix{DType::kBF16, c.rows, c.cols, nullptr, c.weights};
    const std::vector<uint16_t> expected = OnHost({&matrix, 1});
    for (int i = 0; i < test_device::Schedules(); ++i) {
      const std::string name = test_device::UseSchedule(i);
      EXPECT_EQ(OnDevice({&matrix, 1}), expected)
          << c.rows << " x " << c.cols << " from " << c.weights.first << ", " << name;
    }
  }
}

// A matrix with more elements than 32 bits count: too large for the emulator.
TEST_F(RandomWeightsTest, LargeMatricesAreMadeWhole) {
  const StoredMatrix matrix{DType::kBF16, (int64_t{1} << 14) + 1, int64_t{1} << 18, nullptr,
                            numerics::RandomWeights{.seed = 1, .matrix = 2}};
  const auto free_bytes = cuda_->FreeMemoryBytes();
  ASSERT_TRUE(free_bytes.ok());
  if (test_device::Emulated() || *free_bytes < matrix.size_bytes() * 5 / 4) {
    GTEST_SKIP() << matrix.size_bytes() << " bytes do not fit";
  }
  auto loaded = cuda_->LoadMatrix({&matrix, 1}, {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const PackedPart& part = dynamic_cast<const CudaMatrix&>(**loaded).bf16();
  std::vector<uint16_t> expected(static_cast<size_t>(matrix.cols)), actual(expected.size());
  for (const int64_t row : {int64_t{0}, int64_t{8191}, matrix.rows - 2, matrix.rows - 1}) {
    numerics::MakeRandomWeights(*matrix.random, row * matrix.cols, matrix.cols, expected.data());
    const auto* from = static_cast<const uint16_t*>(part.quants) + row * RowPitch(matrix.cols);
    ASSERT_TRUE(cuda_->CopyToHost(actual.data(), from, actual.size() * 2).ok());
    EXPECT_EQ(actual, expected) << row;
  }
}

// Two random parts, with a stored one between them.
TEST_F(RandomWeightsTest, PartsMayBeRandomAndStored) {
  const StoredMatrix random[] = {{DType::kBF16, 5, 72, nullptr, numerics::RandomWeights{1, 2, 3}},
                                 {DType::kBF16, 6, 72, nullptr, numerics::RandomWeights{4, 5, 6}}};
  std::vector<uint16_t> bytes(5 * 72);
  numerics::MakeRandomWeights(*random[0].random, 0, 5 * 72, bytes.data());
  const StoredMatrix stored{DType::kBF16, 5, 72, reinterpret_cast<const std::byte*>(bytes.data())};
  const StoredMatrix mixed[] = {random[0], stored, random[1]};
  const StoredMatrix made[] = {random[0], random[0], random[1]};
  EXPECT_EQ(OnDevice(mixed), OnHost(made));
}

TEST_F(RandomWeightsTest, ProductsAndEmbeddingsHaveTheBitsOfTheCpu) {
  const StoredMatrix parts[] = {
      {DType::kBF16, 40, 300, nullptr, numerics::RandomWeights{.seed = 9, .matrix = 1}},
      {DType::kBF16, 7, 300, nullptr, numerics::RandomWeights{.seed = 9, .matrix = 2}}};
  const std::vector<float> x = RandomFloats(3 * 300, 1);
  ExpectSameBits([&](Backend& backend) {
    auto weight = backend.LoadMatrix(parts, {.for_gemm = true, .for_embedding = true});
    EXPECT_TRUE(weight.ok()) << weight.status();
    Arrays arrays(backend);
    float* y = arrays.Poisoned(3 * 47 + 2 * 300);
    absl::Status status = backend.Gemm({.mode = {Policy::kPortable},
                                        .weight = weight->get(),
                                        .tokens = 3,
                                        .x = arrays.Put(x),
                                        .x_stride = 300,
                                        .y = y,
                                        .y_stride = 47});
    status.Update(backend.Embedding({.table = weight->get(),
                                     .tokens = arrays.Put(std::vector<int32_t>{46, 0}),
                                     .num_tokens = 2,
                                     .y = y + 3 * 47}));
    EXPECT_TRUE(status.ok()) << status;
    return arrays.Get(y, 3 * 47 + 2 * 300);
  });
}

TEST_F(RandomWeightsTest, WhatCannotBeMadeIsRefusedByName) {
  const uint16_t value = 0;
  StoredMatrix wrong{DType::kF16, 1, 1, nullptr, numerics::RandomWeights{}};
  for (Backend* backend : {cpu_.get(), cuda_.get()}) {
    wrong.dtype = DType::kF16;
    wrong.data = nullptr;
    absl::Status status = backend->LoadMatrix({&wrong, 1}, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("made as BF16 alone"));
    wrong.dtype = DType::kBF16;
    wrong.data = reinterpret_cast<const std::byte*>(&value);
    status = backend->LoadMatrix({&wrong, 1}, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("data of a random matrix"));
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda
