#include "kernels/cpu/cpu_backend.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/float_environment.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cpu {
namespace {

TEST(CpuBackendTest, TagsNameWhatFixesTheBits) {
  const auto two = CpuBackend::Create({.threads = 2});
  const auto scalar = CpuBackend::Create({.threads = 1, .isa = Isa::kScalar});
  ASSERT_TRUE(two.ok() && scalar.ok());
  // Strong bits depend on neither threads nor instruction set, and pinned is portable here.
  EXPECT_EQ((*two)->NumericsTag(Policy::kPortable).value(),
            (*scalar)->NumericsTag(Policy::kPinned).value());
  EXPECT_NE((*two)->NumericsTag(Policy::kThroughput).value(),
            (*scalar)->NumericsTag(Policy::kThroughput).value());
  EXPECT_EQ((*scalar)->NumericsTag(Policy::kThroughput).value(), "v1/throughput/cpu-scalar-1t");
  EXPECT_EQ((*scalar)->Describe(), "cpu scalar, 1 thread");
}

TEST(CpuBackendTest, RefusesWhatTheMachineLacks) {
  EXPECT_EQ(CpuBackend::Create({.threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CpuBackend::Create({.threads = 1 << 20}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    const auto backend = CpuBackend::Create({.threads = 1, .isa = isa});
    if (isa <= DetectIsa()) {
      ASSERT_TRUE(backend.ok());
      EXPECT_NE((*backend)->Describe().find(std::string(NameOf(isa))), std::string::npos);
    } else {
      EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST(CpuBackendTest, BuffersAreAlignedAndCopied) {
  const auto backend = CpuBackend::Create({.threads = 1});
  ASSERT_TRUE(backend.ok());
  for (size_t size : {size_t{0}, size_t{1}, size_t{1000}}) {
    auto buffer = (*backend)->Allocate(size);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 64, 0u);
    EXPECT_EQ((*buffer)->size_bytes(), size);
    const std::vector<char> in(size, 'x');
    std::vector<char> out(size);
    ASSERT_TRUE((*backend)->CopyToDevice((*buffer)->data(), in.data(), size).ok());
    ASSERT_TRUE((*backend)->CopyToHost(out.data(), (*buffer)->data(), size).ok());
    EXPECT_EQ(in, out);
  }
  EXPECT_TRUE((*backend)->Synchronize().ok());
}

class EmbeddingTest : public testing::Test {
 protected:
  static constexpr int64_t kVocab = 40, kHidden = 64;

  void SetUp() override {
    table_.resize(kVocab * kHidden);
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = std::sin(0.1f * i);
    auto backend = CpuBackend::Create({.threads = 3});
    ASSERT_TRUE(backend.ok());
    backend_ = *std::move(backend);
    const StoredMatrix stored{.dtype = DType::kF32,
                              .rows = kVocab,
                              .cols = kHidden,
                              .data = reinterpret_cast<const std::byte*>(table_.data())};
    auto matrix = backend_->LoadMatrix({&stored, 1}, {.for_gemm = false, .for_embedding = true});
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    matrix_ = *std::move(matrix);
  }

  EmbeddingParams Params(const std::vector<int32_t>& tokens, std::vector<float>* y) const {
    y->assign(tokens.size() * kHidden, 0.0f);
    return {.mode = {Policy::kPortable, ActivationType::kF32},
            .table = matrix_.get(),
            .tokens = tokens.data(),
            .num_tokens = static_cast<int64_t>(tokens.size()),
            .y = y->data()};
  }

  std::vector<float> table_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<WeightMatrix> matrix_;
};

TEST_F(EmbeddingTest, LooksRowsUp) {
  const std::vector<int32_t> tokens = {39, 0, 7, 7, 12};
  std::vector<float> y;
  EmbeddingParams params = Params(tokens, &y);
  ASSERT_TRUE(backend_->Embedding(params).ok());
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(y[i], table_[tokens[i / kHidden] * kHidden + i % kHidden]);
  }
  params.mode = {Policy::kThroughput, ActivationType::kBF16};
  ASSERT_TRUE(backend_->Embedding(params).ok());
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(y[i], numerics::RoundToBf16(table_[tokens[i / kHidden] * kHidden + i % kHidden]));
  }
}

TEST_F(EmbeddingTest, ScalesByOneMultiplication) {
  const std::vector<int32_t> tokens = {39, 0, 7};
  std::vector<float> y;
  EmbeddingParams params = Params(tokens, &y);
  params.scale = 0.3f;
  ASSERT_TRUE(backend_->Embedding(params).ok());
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(y[i], 0.3f * table_[tokens[i / kHidden] * kHidden + i % kHidden]);
  }
  params.mode = {Policy::kThroughput, ActivationType::kBF16};
  ASSERT_TRUE(backend_->Embedding(params).ok());
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(y[i],
              numerics::RoundToBf16(0.3f * table_[tokens[i / kHidden] * kHidden + i % kHidden]));
  }
}

TEST_F(EmbeddingTest, RefusesTokensOutsideTheTable) {
  std::vector<float> y;
  for (int32_t bad : {-1, 40, INT32_MAX}) {
    const std::vector<int32_t> tokens = {0, bad};
    const absl::Status status = backend_->Embedding(Params(tokens, &y));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find("tokens[1]"), std::string::npos) << status;
  }
  const std::vector<int32_t> tokens = {0};
  EmbeddingParams params = Params(tokens, &y);
  params.table = nullptr;
  EXPECT_EQ(backend_->Embedding(params).code(), absl::StatusCode::kInvalidArgument);
}

#if defined(__x86_64__)
TEST_F(EmbeddingTest, ReportsAndRestoresAChangedFloatEnvironment) {
  const std::vector<int32_t> tokens = {1};
  std::vector<float> y;
  const EmbeddingParams params = Params(tokens, &y);
  constexpr uint32_t kChanged[] = {
      0x1f80 | 0x8000,  // flush to zero
      0x1f80 | 0x0040,  // denormals are zero
      0x1f80 | 0x6000,  // toward zero
      0x1f00,           // an exception unmasked
  };
  for (uint32_t mxcsr : kChanged) {
    _mm_setcsr(mxcsr);
    EXPECT_EQ(backend_->Embedding(params).code(), absl::StatusCode::kInternal) << mxcsr;
    EXPECT_EQ(_mm_getcsr() & ~0x3fu, 0x1f80u);
    EXPECT_TRUE(backend_->Embedding(params).ok());
  }
  // Recorded exceptions are not a change.
  _mm_setcsr(0x1f80 | 0x3f);
  EXPECT_TRUE(backend_->Embedding(params).ok());
}

TEST(FloatEnvironmentTest, EveryThreadOfThePoolIsChecked) {
  const std::vector<float> table(32 * 4, 1.0f);
  ThreadPool pool(3);
  const CpuContext context{.pool = &pool, .isa = DetectIsa()};
  const StoredMatrix stored{.dtype = DType::kF32,
                            .rows = 4,
                            .cols = 32,
                            .data = reinterpret_cast<const std::byte*>(table.data())};
  const auto matrix =
      PackMatrix(context, {&stored, 1}, {.for_gemm = false, .for_embedding = true}, {});
  ASSERT_TRUE(matrix.ok());
  const int32_t token = 0;
  std::vector<float> y(32);
  const EmbeddingParams params{.mode = {Policy::kPortable, ActivationType::kF32},
                               .table = matrix->get(),
                               .tokens = &token,
                               .num_tokens = 1,
                               .y = y.data()};
  for (int thread = 0; thread < 3; ++thread) {
    pool.Run([&](int t) {
      if (t == thread) _mm_setcsr(0x1f80 | 0x8000);
    });
    EXPECT_EQ(Embedding(context, params).code(), absl::StatusCode::kInternal) << thread;
    EXPECT_TRUE(Embedding(context, params).ok()) << thread;
  }
}
#endif

}  // namespace
}  // namespace verbatim::kernels::cpu
