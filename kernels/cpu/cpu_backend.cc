// The backend that computes on the host's processor.
#include "kernels/cpu/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/gather_rows.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/grouped_gemm.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sampling.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cpu/tree_sum.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {

namespace {

constexpr int kMaxThreads = 1024;
class HostBuffer final : public Buffer {
 public:
  explicit HostBuffer(size_t size_bytes)
      : size_bytes_(size_bytes), bytes_(std::max<size_t>(size_bytes, 1)) {}
  void* data() override { return bytes_.data(); }
  size_t size_bytes() const override { return size_bytes_; }

 private:
  const size_t size_bytes_;
  AlignedBytes bytes_;
};

// Cores in this process's affinity mask, at least one.
int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const unsigned cores = std::thread::hardware_concurrency();
  return cores > 0 ? static_cast<int>(cores) : 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CpuBackend::Create(const CpuBackendOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", options.threads, " is not from 0 to ", kMaxThreads));
  }
  const Isa widest = DetectIsa();
  const Isa isa = options.isa.value_or(widest);
  if (isa > widest) {
    return absl::FailedPreconditionError(absl::StrCat("isa: this machine has no ",
                                                      std::string(NameOf(isa)), ", its widest is ",
                                                      std::string(NameOf(widest))));
  }
  const int threads = options.threads > 0 ? options.threads : std::min(UsableCores(), kMaxThreads);
  return std::unique_ptr<Backend>(new CpuBackend(options, isa, threads));
}

CpuBackend::CpuBackend(const CpuBackendOptions& options, Isa isa, int threads)
    : options_(options), pool_(threads), context_{.pool = &pool_, .isa = isa} {}

absl::StatusOr<CpuBackendOptions> CpuBackend::OptionsOf(const std::string& description) {
  const std::vector<std::string> words = absl::StrSplit(description, ' ');
  CpuBackendOptions options;
  if (words.size() == 4 && words[0] == "cpu" && absl::SimpleAtoi(words[2], &options.threads) &&
      options.threads >= 1 && options.threads <= kMaxThreads) {
    for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (words[1] == absl::StrCat(std::string(NameOf(isa)), ",")) options.isa = isa;
    }
  }
  if (!options.isa.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", description, "' does not describe a CPU backend"));
  }
  return options;
}

std::string CpuBackend::Describe() const {
  return absl::StrCat("cpu ", std::string(NameOf(context_.isa)), ", ", pool_.threads(),
                      pool_.threads() == 1 ? " thread" : " threads");
}

absl::StatusOr<std::string> CpuBackend::NumericsTag(Policy policy) const {
  if (policy == Policy::kPinned && UsesBf16Leaves(context_.isa)) {
    // The probe tells processors apart whose dot products round differently.
    return absl::StrCat("v1/pinned/cpu-avx512bf16-", absl::Hex(Bf16Probe(), absl::kZeroPad8),
                        "-shards", 1 << numerics::kShardDepth);
  }
  if (IsStrong(policy)) return std::string("v1/portable/cpu-tree128");
  return absl::StrCat("v1/throughput/cpu-", std::string(NameOf(context_.isa)), "-", pool_.threads(),
                      "t");
}

absl::StatusOr<std::unique_ptr<Buffer>> CpuBackend::Allocate(size_t size_bytes) {
  auto buffer = std::make_unique<HostBuffer>(size_bytes);
  if (buffer->data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", size_bytes, " bytes"));
  }
  return buffer;
}

absl::Status CpuBackend::CopyToDevice(void* device, const void* host, size_t size_bytes) {
  if (size_bytes > 0) memcpy(device, host, size_bytes);
  return absl::OkStatus();
}

absl::Status CpuBackend::CopyToHost(void* host, const void* device, size_t size_bytes) {
  if (size_bytes > 0) memcpy(host, device, size_bytes);
  return absl::OkStatus();
}

absl::Status CpuBackend::Synchronize() { return absl::OkStatus(); }

absl::StatusOr<int64_t> CpuBackend::FreeMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  for (int64_t kibibytes = 0; file >> name >> kibibytes; std::getline(file, unit)) {
    if (name == "MemAvailable:") return kibibytes << 10;
  }
  return absl::UnavailableError("/proc/meminfo does not say how much memory is available");
}

std::string CpuBackend::GemmKernel(const NumericMode& mode, const WeightMatrix& weight,
                                   int64_t tokens) const {
  return std::string(cpu::GemmKernel(context_, mode, weight, tokens));
}

std::vector<AttentionCut> CpuBackend::AttentionCuts(const NumericMode& mode,
                                                    const KvCacheConfig& cache, int64_t num_heads,
                                                    absl::Span<const SequenceSpan> spans) const {
  return cpu::AttentionCuts(context_, mode, cache, num_heads, spans);
}

absl::StatusOr<std::unique_ptr<WeightMatrix>> CpuBackend::LoadMatrix(
    absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) {
  auto packed = PackMatrix(context_, parts, options, options_.gemm);
  if (!packed.ok()) return packed.status();
  return std::unique_ptr<WeightMatrix>(*std::move(packed));
}

absl::StatusOr<std::unique_ptr<KvCache>> CpuBackend::CreateKvCache(const KvCacheConfig& config) {
  return CpuKvCache::Create(config);
}

std::string CpuBackend::DecodePlan(const DecodeStep& step) const {
  return absl::StrCat(step.rows, " rows, one operation after the other");
}

absl::Status CpuBackend::RunDecode(const DecodeStep& step,
                                   absl::FunctionRef<absl::Status()> operations) {
  if (absl::Status status = CheckDecodeStep(step); !status.ok()) return status;
  return operations();
}

absl::Status CpuBackend::Embedding(const EmbeddingParams& params) {
  return cpu::Embedding(context_, params);
}
absl::Status CpuBackend::RmsNorm(const RmsNormParams& params) {
  return cpu::RmsNorm(context_, params);
}
absl::Status CpuBackend::Gemm(const GemmParams& params) { return cpu::Gemm(context_, params); }
absl::Status CpuBackend::Rope(const RopeParams& params) { return cpu::Rope(context_, params); }
absl::Status CpuBackend::KvWrite(const KvWriteParams& params) {
  return cpu::KvWrite(context_, params);
}
absl::Status CpuBackend::Attention(const AttentionParams& params) {
  return cpu::Attention(context_, params);
}
absl::Status CpuBackend::SwiGlu(const SwiGluParams& params) {
  return cpu::SwiGlu(context_, params);
}
absl::Status CpuBackend::MoeRoute(const MoeRouteParams& params) {
  return cpu::MoeRoute(context_, params);
}
absl::Status CpuBackend::MoePermute(const MoePermuteParams& params) {
  return cpu::MoePermute(context_, params);
}
absl::Status CpuBackend::GroupedGemm(const GroupedGemmParams& params) {
  return cpu::GroupedGemm(context_, params);
}
absl::Status CpuBackend::MoeCombine(const MoeCombineParams& params) {
  return cpu::MoeCombine(context_, params);
}
absl::Status CpuBackend::GatherRows(const GatherRowsParams& params) {
  return cpu::GatherRows(context_, params);
}
absl::Status CpuBackend::TreeSum(const TreeSumParams& params) {
  return cpu::TreeSum(context_, params);
}
absl::Status CpuBackend::Sample(const SamplingParams& params) {
  return cpu::Sample(context_, params);
}

}  // namespace verbatim::kernels::cpu
