// Benchmarks of the CUDA backend's operations, against the device's own limits and cuBLASLt: matrix
// products and attention in the shapes of Llama-3.1-8B, products of experts in those of
// Qwen3-30B-A3B. Whole models: cuda_model_bench.
//
// cuda_bench [--only gemm|forms|experts|attention] [--seconds S] prints one JSON object. Weights
// and activations are random; times are medians of repeated runs; what would begin after S seconds
// is left out.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "bench/cuda_bench_support.h"
#include "bench/cuda_grouped_gemm.h"
#include "bench/cuda_pinned_forms.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/runtime.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {
namespace {

using nlohmann::json;
using namespace kernels;  // NOLINT(google-build-using-namespace): a program of one file
// Bytes read and written a second by a large copy on the device.
double CopyRate() {
  constexpr size_t kBytes = size_t{2} << 30;
  void *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, kBytes) != cudaSuccess || cudaMalloc(&to, kBytes) != cudaSuccess) return 0;
  cudaMemset(from, 1, kBytes);
  const double seconds = MedianSeconds(
      [&](int) { cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, nullptr); },
      [] { cudaDeviceSynchronize(); });
  cudaFree(from);
  cudaFree(to);
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
constexpr int64_t kBatches[] = {1, 4, 8, 16, 64, 256, 2048};

json BenchGemm(Backend& backend, cuda::LibraryGemm* library, double copy_rate) {
  json out = json::array();
  for (const Shape& shape : kShapes) {
    const size_t elements = static_cast<size_t>(shape.n * shape.k);
    const std::vector<uint16_t> weights = RandomBf16(elements, 1);
    const StoredMatrix stored{DType::kBF16, shape.n, shape.k,
                              reinterpret_cast<const std::byte*>(weights.data())};
    // More weights than the cache holds, taken in turn.
    const int copies = std::max(2, static_cast<int>((size_t{256} << 20) / (elements * 2)));
    std::vector<std::unique_ptr<WeightMatrix>> matrices;
    std::vector<std::unique_ptr<Buffer>> plain;
    for (int i = 0; i < copies; ++i) {
      matrices.push_back(Value(backend.LoadMatrix({&stored, 1}, {}), "load"));
      if (library != nullptr) plain.push_back(Upload(backend, weights.data(), elements * 2));
    }
    const std::vector<float> x = RandomFloats(static_cast<size_t>(2048 * shape.k), 2);
    const std::unique_ptr<Buffer> device_x = Upload(backend, x.data(), x.size() * sizeof(float));
    const std::vector<uint16_t> x16 = RandomBf16(x.size(), 3);
    const std::unique_ptr<Buffer> device_x16 = Upload(backend, x16.data(), x16.size() * 2);
    const std::unique_ptr<Buffer> y =
        Value(backend.Allocate(static_cast<size_t>(2048 * shape.n) * sizeof(float)), "allocate");
    for (int64_t tokens : kBatches) {
      const double flops = 2.0 * static_cast<double>(tokens * shape.n * shape.k);
      const double bytes = 2.0 * static_cast<double>(elements) +
                           4.0 * static_cast<double>(tokens * (shape.n + shape.k));
      json row = {{"shape", shape.name}, {"n", shape.n}, {"k", shape.k}, {"tokens", tokens}};
      const auto report = [&](const char* name, double seconds) {
        row[name] = {{"us", seconds * 1e6},
                     {"tflops", flops / seconds * 1e-12},
                     {"bandwidth_share", copy_rate > 0 ? bytes / seconds / copy_rate : 0.0}};
      };
      for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
        const double seconds = MedianSeconds(
            [&](int i) {
              Check(backend.Gemm({.mode = {policy},
                                  .weight = matrices[static_cast<size_t>(i % copies)].get(),
                                  .tokens = tokens,
                                  .x = FloatsOf(device_x),
                                  .x_stride = shape.k,
                                  .y = FloatsOf(y),
                                  .y_stride = shape.n}),
                    "gemm");
            },
            [&] { Check(backend.Synchronize(), "gemm"); });
        report(std::string(NameOf(policy)).c_str(), seconds);
      }
      row["throughput_kernel"] =
          backend.GemmKernel({Policy::kThroughput}, *matrices.front(), tokens);
      // The library's product alone, of values that are bf16 already.
      const cuda::LibraryGemm::Algorithm* algorithm =
          library == nullptr
              ? nullptr
              : library->Choose(
                    {.tokens = tokens, .rows = shape.n, .cols = shape.k, .y_stride = shape.n});
      if (algorithm != nullptr) {
        const double seconds = MedianSeconds(
            [&](int i) {
              Check(library->Run(*algorithm,
                                 {.tokens = tokens,
                                  .x = device_x16->data(),
                                  .w = plain[static_cast<size_t>(i % copies)]->data(),
                                  .y = FloatsOf(y)},
                                 nullptr),
                    "library product");
            },
            [] { cudaDeviceSynchronize(); });
        report("cublaslt", seconds);
        row["pinned_over_cublaslt"] = seconds / (row["pinned"]["us"].get<double>() * 1e-6);
      }
      out.push_back(row);
    }
  }
  return out;
}

constexpr int64_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageTokens = 32;

// A cache of `sequences` histories of `context` positions, pages in shuffled order, and decode
// spans behind them.
struct Histories {
  std::unique_ptr<KvCache> cache;
  std::vector<std::vector<int32_t>> pages;
  std::vector<SequenceSpan> decode;
};
Histories MakeHistories(Backend& backend, int64_t layers, int64_t sequences, int64_t context,
                        DType dtype) {
  Histories h;
  const int64_t pages_each = (context + 1 + kPageTokens - 1) / kPageTokens;
  h.cache = Value(backend.CreateKvCache({.num_layers = layers,
                                         .num_kv_heads = kKvHeads,
                                         .head_dim = kHeadDim,
                                         .page_tokens = kPageTokens,
                                         .num_pages = pages_each * sequences,
                                         .dtype = dtype}),
                  "cache");
  std::vector<int32_t> ids(static_cast<size_t>(pages_each * sequences));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  Random random(7);
  for (size_t i = ids.size(); i-- > 1;) std::swap(ids[i], ids[random.Next() % (i + 1)]);
  const int64_t stride = 2 * kKvHeads * kHeadDim;
  const std::vector<float> kv = RandomFloats(static_cast<size_t>((context + 1) * stride), 8);
  const std::unique_ptr<Buffer> device = Upload(backend, kv.data(), kv.size() * sizeof(float));
  h.pages.resize(static_cast<size_t>(sequences));
  for (int64_t s = 0; s < sequences; ++s) {
    std::vector<int32_t>& pages = h.pages[static_cast<size_t>(s)];
    pages.assign(ids.begin() + s * pages_each, ids.begin() + (s + 1) * pages_each);
    const SequenceSpan span{0, static_cast<int32_t>(context + 1), 0, pages.data(),
                            static_cast<int32_t>(pages_each)};
    for (int64_t layer = 0; layer < layers; ++layer) {
      Check(backend.KvWrite({.cache = h.cache.get(),
                             .layer = layer,
                             .k = FloatsOf(device),
                             .v = FloatsOf(device) + kKvHeads * kHeadDim,
                             .row_stride = stride,
                             .spans = {&span, 1}}),
            "kv write");
    }
    h.decode.push_back({static_cast<int32_t>(s), 1, static_cast<int32_t>(context), pages.data(),
                        static_cast<int32_t>(pages_each)});
  }
  Check(backend.Synchronize(), "kv write");
  return h;
}

json BenchAttention(Backend& backend, double copy_rate) {
  json out = json::array();
  const int64_t stride = kHeads * kHeadDim;
  const std::vector<float> q = RandomFloats(static_cast<size_t>(2048 * stride), 9);
  const std::unique_ptr<Buffer> device_q = Upload(backend, q.data(), q.size() * sizeof(float));
  const std::unique_ptr<Buffer> y = Value(backend.Allocate(q.size() * sizeof(float)), "allocate");
  const auto attend = [&](Policy policy, const Histories& h, absl::Span<const SequenceSpan> spans) {
    return MedianSeconds(
        [&](int) {
          Check(backend.Attention({.mode = {policy},
                                   .cache = h.cache.get(),
                                   .q = FloatsOf(device_q),
                                   .q_stride = stride,
                                   .y = FloatsOf(y),
                                   .y_stride = stride,
                                   .num_heads = kHeads,
                                   .scale = 0.088f,
                                   .spans = spans}),
                "attention");
        },
        [&] { Check(backend.Synchronize(), "attention"); });
  };
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    // Over pages of fp32 PINNED computes as PORTABLE does.
    std::vector<Policy> policies = {Policy::kPortable};
    if (dtype == DType::kBF16) policies.insert(policies.begin(), Policy::kPinned);
    for (auto [sequences, context] : std::initializer_list<std::pair<int64_t, int64_t>>{
             {1, 1024}, {16, 1024}, {64, 1024}, {256, 1024}, {1, 32768}}) {
      const Histories h = MakeHistories(backend, 1, sequences, context, dtype);
      const double bytes =
          static_cast<double>(sequences * (context + 1) * kKvHeads * kHeadDim * 2) *
          (dtype == DType::kF32 ? 4 : 2);
      for (Policy policy : policies) {
        const double seconds = attend(policy, h, h.decode);
        out.push_back({{"kind", "decode"},
                       {"policy", std::string(NameOf(policy))},
                       {"pages", std::string(InfoOf(dtype).name)},
                       {"sequences", sequences},
                       {"context", context},
                       {"us", seconds * 1e6},
                       {"bandwidth_share", copy_rate > 0 ? bytes / seconds / copy_rate : 0.0}});
      }
    }
    const Histories h = MakeHistories(backend, 1, 1, 2047, dtype);
    const SequenceSpan span{0, 2048, 0, h.pages[0].data(), static_cast<int32_t>(h.pages[0].size())};
    for (Policy policy : policies) {
      const double seconds = attend(policy, h, {&span, 1});
      out.push_back({{"kind", "prefill"},
                     {"policy", std::string(NameOf(policy))},
                     {"pages", std::string(InfoOf(dtype).name)},
                     {"tokens", 2048},
                     {"us", seconds * 1e6},
                     {"tflops", 2.0 * 2048 * 2048 * kHeads * kHeadDim / seconds * 1e-12}});
    }
  }
  return out;
}

const std::string kParts[] = {"gemm", "forms", "experts", "attention"};

int Main(int argc, char** argv) {
  double limit_seconds = 360;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc &&
        std::count(std::begin(kParts), std::end(kParts), std::string(argv[i + 1])) == 1) {
      only = argv[++i];
      continue;
    }
    if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc &&
        absl::SimpleAtod(argv[i + 1], &limit_seconds)) {
      ++i;
      continue;
    }
    std::fprintf(stderr, "usage: cuda_bench [--only gemm|forms|experts|attention] [--seconds S]\n");
    return 2;
  }
  const Clock::time_point start = Clock::now();
  const auto wanted = [&](const char* part) {
    return (only.empty() || only == part) && SecondsSince(start) < limit_seconds;
  };
  const cuda::runtime::DeviceInfo info = Value(cuda::runtime::OpenDevice(0), "device");
  std::unique_ptr<Backend> backend = Value(cuda::CudaBackend::Create({}), "backend");
  json out;
  out["device"] = backend->Describe();
  out["driver_cuda"] = info.driver_version;
  for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
    out["tags"][std::string(NameOf(policy))] = Value(backend->NumericsTag(policy), "tag");
  }
  const double copy_rate = CopyRate();
  out["copy_gb_per_s"] = copy_rate * 1e-9;
  absl::StatusOr<std::unique_ptr<cuda::LibraryGemm>> opened =
      cuda::LibraryGemm::Open(cuda::CudaBackendOptions{}.library_workspace_bytes);
  cuda::LibraryGemm* const library = opened.ok() ? opened->get() : nullptr;
  if (library == nullptr) out["no_cublaslt"] = std::string(opened.status().message());
  if (wanted("gemm")) out["gemm"] = BenchGemm(*backend, library, copy_rate);
  if (wanted("forms")) out["pinned_forms"] = BenchPinnedForms(*backend, info);
  if (wanted("experts")) out["experts"] = BenchGroupedGemm(*backend, info, copy_rate);
  if (wanted("attention")) out["attention"] = BenchAttention(*backend, copy_rate);
  out["seconds"] = SecondsSince(start);
  std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace verbatim::bench

int main(int argc, char** argv) { return verbatim::bench::Main(argc, argv); }
