// The CUDA backend's life cycle and faults, planted in the emulated device.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/cuda_backend.h"
#include "simt/emulator.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

constexpr CudaBackendOptions kSmall{.library_workspace_bytes = 1 << 16,
                                    .weight_block_bytes = 0,
                                    .workspace_bytes = 1 << 20,
                                    .table_bytes = 4096,
                                    .staging_slot_bytes = 1000,
                                    .sampling_scratch_bytes = 1 << 16,
                                    .sampling_list_bytes = 1 << 16};

class CudaBackendFaultsTest : public testing::Test {
 protected:
  void TearDown() override {
    simt_faults::Heal();
    simt_faults::SetDeviceCount(1);
    simt_faults::SetComputeCapability(0);
    simt_faults::SetMaxSharedBytes(size_t{227} << 10);
    simt_faults::SetLibraryPresent(true);
    simt_faults::SetLibraryUnknownTokens(0);
  }
  static std::string Message(const absl::Status& status) { return std::string(status.message()); }
};

TEST_F(CudaBackendFaultsTest, SaysWhatItRunsOnAndWhatFixesItsBits) {
  auto backend = CudaBackend::Create(kSmall);
  ASSERT_TRUE(backend.ok());
  EXPECT_THAT((*backend)->Describe(), HasSubstr("cuda emulator"));
  auto cpu = cpu::CpuBackend::Create({.threads = 1});
  ASSERT_TRUE(cpu.ok());
  // PORTABLE's bits are the CPU's, so its name is too; the others name device and code.
  EXPECT_EQ((*backend)->NumericsTag(Policy::kPortable).value(),
            (*cpu)->NumericsTag(Policy::kPortable).value());
  EXPECT_THAT((*backend)->NumericsTag(Policy::kPinned).value(), HasSubstr("S4-emulated"));
  EXPECT_NE((*backend)->NumericsTag(Policy::kThroughput).value(),
            (*backend)->NumericsTag(Policy::kPinned).value());
}

TEST_F(CudaBackendFaultsTest, NoDeviceIsAClearRefusal) {
  simt_faults::SetDeviceCount(0);
  const auto backend = CudaBackend::Create(kSmall);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(backend.status()), HasSubstr("no device 0"));
  simt_faults::SetDeviceCount(1);
  CudaBackendOptions second = kSmall;
  second.device = 1;
  EXPECT_EQ(CudaBackend::Create(second).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CudaBackendFaultsTest, TooLittleMemoryNamesTheSize) {
  CudaBackendOptions huge = kSmall;
  huge.workspace_bytes = size_t{1} << 40;
  const auto backend = CudaBackend::Create(huge);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(backend.status()), HasSubstr("1099511627776 bytes"));
  auto small = CudaBackend::Create(kSmall);
  ASSERT_TRUE(small.ok());
  EXPECT_THAT(
      Message(
          (*small)
              ->CreateKvCache(
                  {.num_layers = 1, .num_kv_heads = 1024, .head_dim = 128, .num_pages = 1 << 20})
              .status()),
      HasSubstr("KV cache of 1048576 pages"));
}

// Compute capability 8.6 and 8.9 have 99 KiB a block: all that is not for Hopper runs, to the bit.
TEST_F(CudaBackendFaultsTest, DevicesWithLessSharedMemoryComputeTheSame) {
  const KvCacheConfig wide{.num_layers = 1,
                           .num_kv_heads = 1,
                           .head_dim = 256,
                           .page_tokens = 16,
                           .num_pages = 20,
                           .dtype = DType::kBF16};
  const std::vector<float> values = cpu::RandomValues(600 * 256, 8);
  std::vector<int32_t> pages(20);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  const auto attend = [&](Policy policy) {
    auto backend = CudaBackend::Create(kSmall);
    EXPECT_TRUE(backend.ok()) << backend.status();
    auto cache = (*backend)->CreateKvCache(wide);
    EXPECT_TRUE(cache.ok()) << cache.status();
    const SequenceSpan span{0, 300, 0, pages.data(), 20};
    std::vector<float> y(300 * 256);
    absl::Status status = (*backend)->KvWrite({.cache = cache->get(),
                                               .k = values.data(),
                                               .v = values.data() + 300 * 256,
                                               .row_stride = 256,
                                               .spans = {&span, 1}});
    status.Update((*backend)->Attention({.mode = {policy},
                                         .cache = cache->get(),
                                         .q = values.data(),
                                         .q_stride = 256,
                                         .y = y.data(),
                                         .y_stride = 256,
                                         .num_heads = 1,
                                         .scale = 0.1f,
                                         .spans = {&span, 1}}));
    EXPECT_TRUE(status.ok()) << status;
    return y;
  };
  const std::vector<float> portable = attend(Policy::kPortable), pinned = attend(Policy::kPinned);
  EXPECT_NE(pinned, portable);
  simt_faults::SetMaxSharedBytes(size_t{99} << 10);
  EXPECT_EQ(attend(Policy::kPinned), pinned);
  EXPECT_EQ(attend(Policy::kPortable), portable);
  // Such a device has no wgmma; one that says so gets no kernel for it.
  simt_faults::SetComputeCapability(9);
  EXPECT_THAT((*CudaBackend::Create(kSmall))->Describe(),
              HasSubstr("mma.sync alone (cuda: the kernel pinned product by wgmma needs "));
}

TEST_F(CudaBackendFaultsTest, TooLittleSharedMemoryIsRefusedAtTheStart) {
  simt_faults::SetMaxSharedBytes(size_t{64} << 10);
  const auto backend = CudaBackend::Create(kSmall);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(backend.status()),
              HasSubstr("the kernel attention of 32 queries needs 66304 bytes of shared memory a "
                        "block; emulator, compute capability 0.0, has 65536"));
}

// Fetching tokens is one copy and one wait, which bring what kernels have to report too.
TEST_F(CudaBackendFaultsTest, SamplingFetchesFaultsWithItsAnswers) {
  auto created = CudaBackend::Create(kSmall);
  ASSERT_TRUE(created.ok());
  Backend& backend = **created;
  const cpu::TestMatrix table = cpu::RandomMatrix(DType::kF32, 10, 64, 1);
  auto matrix = backend.LoadMatrix({&table.stored, 1}, {.for_gemm = false, .for_embedding = true});
  ASSERT_TRUE(matrix.ok());
  std::vector<float> logits = cpu::RandomValues(2 * 64, 3);
  std::vector<float> y(64);
  SamplingRow rows[2];
  SampledRow results[2];
  const auto sample = [&] {
    return backend.Sample({.logits = logits.data(),
                           .stride = 64,
                           .vocab = 64,
                           .rows = rows,
                           .results = absl::MakeSpan(results)});
  };
  ASSERT_TRUE(sample().ok());
  const simt_faults::Transfers before = simt_faults::TransfersSoFar();
  ASSERT_TRUE(sample().ok());
  const simt_faults::Transfers after = simt_faults::TransfersSoFar();
  EXPECT_EQ(after.to_host - before.to_host, 1);
  EXPECT_EQ(after.to_device - before.to_device, 1);
  EXPECT_EQ(after.waits - before.waits, 1);
  const int32_t bad = 10;
  ASSERT_TRUE(
      backend.Embedding({.table = matrix->get(), .tokens = &bad, .num_tokens = 1, .y = y.data()})
          .ok());
  const absl::Status status = sample();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("Embedding: a token is out of range"));
  EXPECT_TRUE(sample().ok());
}

TEST_F(CudaBackendFaultsTest, UploadsLargerThanASlotArriveWhole) {
  auto backend = CudaBackend::Create(kSmall);
  ASSERT_TRUE(backend.ok());
  for (size_t size : {size_t{0}, size_t{1}, size_t{1000}, size_t{12345}}) {
    auto buffer = (*backend)->Allocate(size);
    ASSERT_TRUE(buffer.ok());
    std::vector<char> in(size), out(size);
    for (size_t i = 0; i < size; ++i) in[i] = static_cast<char>(i * 7);
    ASSERT_TRUE((*backend)->CopyToDevice((*buffer)->data(), in.data(), size).ok());
    ASSERT_TRUE((*backend)->CopyToHost(out.data(), (*buffer)->data(), size).ok());
    EXPECT_EQ(in, out);
  }
}

// A machine without the library serves THROUGHPUT by PINNED's kernels, and says so wherever it is
// asked; so does one whose library knows no algorithm for some shape.
TEST_F(CudaBackendFaultsTest, WithoutTheLibraryThroughputIsPinnedAndSaysSo) {
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 32, 512, 4);
  const std::vector<float> x = cpu::RandomValues(3 * 512, 5);
  for (const bool present : {true, false}) {
    simt_faults::SetLibraryPresent(present);
    simt_faults::SetLibraryUnknownTokens(2);
    auto backend = CudaBackend::Create(kSmall);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT(
        (*backend)->Describe(),
        HasSubstr(present ? "throughput products by reference-1"
                          : "throughput products by pinned kernels (no reference library)"));
    EXPECT_EQ(
        (*backend)->NumericsTag(Policy::kThroughput)->find("reference-1") != std::string::npos,
        present);
    auto weight = (*backend)->LoadMatrix({&w.stored, 1}, {});
    ASSERT_TRUE(weight.ok());
    for (int64_t tokens : {1, 2, 3}) {
      const bool by_library = present && tokens != 2;
      EXPECT_EQ((*backend)->GemmKernel({Policy::kThroughput}, **weight, tokens),
                by_library ? "reference splitk 4" : "cuda mma shards");
      std::vector<float> y[2];
      for (const Policy policy : {Policy::kThroughput, Policy::kPinned}) {
        y[policy == Policy::kPinned].resize(3 * 32);
        ASSERT_TRUE((*backend)
                        ->Gemm({.mode = {policy},
                                .weight = weight->get(),
                                .tokens = tokens,
                                .x = x.data(),
                                .x_stride = 512,
                                .y = y[policy == Policy::kPinned].data(),
                                .y_stride = 32})
                        .ok());
      }
      EXPECT_EQ(y[0] != y[1], by_library) << tokens << " tokens";
    }
  }
}

// A device that fails in the middle: the operation and everything after it report it.
TEST_F(CudaBackendFaultsTest, AStickyErrorEndsEverything) {
  auto backend = CudaBackend::Create(kSmall);
  ASSERT_TRUE(backend.ok());
  float x[64] = {}, y[32] = {};
  ASSERT_TRUE((*backend)->SwiGlu({.gate_up = x, .y = y, .tokens = 1, .cols = 32}).ok());
  simt_faults::FailDevice(absl::InternalError("cuda: an illegal address"));
  EXPECT_THAT(Message((*backend)->SwiGlu({.gate_up = x, .y = y, .tokens = 1, .cols = 32})),
              HasSubstr("illegal address"));
  EXPECT_FALSE((*backend)->Synchronize().ok());
  EXPECT_FALSE((*backend)->Allocate(16).ok());
  EXPECT_FALSE((*backend)->CopyToDevice(y, x, 16).ok());
  EXPECT_FALSE((*backend)->CopyToHost(y, x, 16).ok());
  EXPECT_FALSE(CudaBackend::Create(kSmall).ok());
}

TEST_F(CudaBackendFaultsTest, AFailedLaunchNamesTheOperation) {
  auto backend = CudaBackend::Create(kSmall);
  ASSERT_TRUE(backend.ok());
  // More blocks than a grid's second dimension takes.
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kF32, 32, 32, 1);
  auto weight = (*backend)->LoadMatrix({&w.stored, 1}, {});
  ASSERT_TRUE(weight.ok());
  const int64_t tokens = int64_t{65536} * 64;
  float x[32] = {}, y[32] = {};
  const absl::Status status = (*backend)->Gemm(
      {.weight = weight->get(), .tokens = tokens, .x = x, .x_stride = 32, .y = y, .y_stride = 32});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("Gemm: the grid is too large"));
}

// Steps after the first allocate nothing, and kernels do the work.
TEST_F(CudaBackendFaultsTest, OperationsAllocateNothing) {
  auto created = CudaBackend::Create(kSmall);
  ASSERT_TRUE(created.ok());
  Backend& backend = **created;
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kQ8_0, 64, 64, 2);
  auto weight = backend.LoadMatrix({&w.stored, 1}, {.for_gemm = true, .for_embedding = true});
  auto cache = backend.CreateKvCache(
      {.num_layers = 1, .num_kv_heads = 1, .head_dim = 32, .page_tokens = 16, .num_pages = 2});
  ASSERT_TRUE(weight.ok() && cache.ok());
  auto memory = backend.Allocate(1 << 16);
  ASSERT_TRUE(memory.ok());
  float* x = static_cast<float*>((*memory)->data());
  const std::vector<float> values = cpu::RandomValues(4096, 3);
  ASSERT_TRUE(backend.CopyToDevice(x, values.data(), values.size() * 4).ok());
  float* y = x + 4096;
  const std::vector<int32_t> ints = {1, 0};
  int32_t* tokens = reinterpret_cast<int32_t*>(x + 8192);
  ASSERT_TRUE(backend.CopyToDevice(tokens, ints.data(), 8).ok());
  // Two tokens, two experts, both for each.
  const WeightMatrix* const experts[] = {weight->get(), weight->get()};
  float* routing = x + 8448;
  int32_t* chosen = tokens + 2;
  const int32_t pages[] = {1, 0};
  const int64_t allocated = simt_faults::Allocations();
  const int64_t launched = simt::LaunchCount();
  for (int32_t step = 0; step < 3; ++step) {
    const SequenceSpan span{0, 2, 2 * step, pages, 2};
    SamplingRow row;
    row.num_logprobs = 2;
    SampledRow result;
    absl::Status status =
        backend.Embedding({.table = weight->get(), .tokens = tokens, .num_tokens = 2, .y = x});
    for (Policy policy : {Policy::kPortable, Policy::kPinned, Policy::kThroughput}) {
      status.Update(backend.Gemm({.mode = {policy},
                                  .weight = weight->get(),
                                  .tokens = 2,
                                  .x = x,
                                  .x_stride = 64,
                                  .y = y,
                                  .y_stride = 64}));
    }
    status.Update(backend.MoeRoute({.logits = x,
                                    .tokens = 2,
                                    .num_experts = 2,
                                    .top_k = 2,
                                    .capacity = 1,
                                    .experts = chosen,
                                    .weights = routing}));
    status.Update(backend.MoePermute({.experts = chosen,
                                      .tokens = 2,
                                      .num_experts = 2,
                                      .top_k = 2,
                                      .offsets = chosen + 4,
                                      .token_of = chosen + 8,
                                      .place_of = chosen + 12}));
    for (Policy policy : {Policy::kPortable, Policy::kPinned, Policy::kThroughput}) {
      status.Update(backend.GroupedGemm({.mode = {policy},
                                         .weights = experts,
                                         .offsets = chosen + 4,
                                         .max_places = 4,
                                         .x = x,
                                         .x_rows = 2,
                                         .x_stride = 64,
                                         .rows = chosen + 8,
                                         .y = y,
                                         .y_stride = 64}));
    }
    status.Update(backend.MoeCombine({.expert_rows = y,
                                      .place_of = chosen + 12,
                                      .weights = routing,
                                      .tokens = 2,
                                      .top_k = 2,
                                      .cols = 64,
                                      .residual = x,
                                      .y = x}));
    status.Update(backend.KvWrite(
        {.cache = cache->get(), .k = x, .v = x, .row_stride = 64, .spans = {&span, 1}}));
    status.Update(backend.Attention({.cache = cache->get(),
                                     .q = x,
                                     .q_stride = 64,
                                     .y = y,
                                     .y_stride = 64,
                                     .num_heads = 2,
                                     .spans = {&span, 1}}));
    status.Update(backend.Sample({.logits = x,
                                  .stride = 64,
                                  .vocab = 64,
                                  .rows = {&row, 1},
                                  .results = absl::MakeSpan(&result, 1)}));
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(simt_faults::Allocations(), allocated);
  EXPECT_GE(simt::LaunchCount() - launched, 3 * 19);
}

}  // namespace
}  // namespace verbatim::kernels::cuda
