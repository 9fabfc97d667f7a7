// Launches both forms themselves, whatever the backend would choose.
#include "bench/cuda_pinned_forms.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda_bench_support.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pinned_gemm_form.h"

namespace verbatim::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::DType;
using nlohmann::json;
namespace cuda = kernels::cuda;

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
constexpr int64_t kBatches[] = {128, 256, 1024, 2048, 8192};
constexpr int64_t kMostTokens = 8192;
// Outputs that are compared, at most.
constexpr int64_t kCompared = int64_t{8} << 20;
constexpr size_t kPartialBytes = size_t{64} << 20;

struct Form {
  const char* name;
  cuda::WgmmaTiles tiles;  // of no columns: mma.sync
};
constexpr Form kForms[] = {{"mma", {0, 0}},
                           {"wgmma_128x1", {128, 1}},
                           {"wgmma_192x1", {192, 1}},
                           {"wgmma_128x2", {128, 2}},
                           {"wgmma_192x2", {192, 2}}};

}  // namespace

void MeasurePinnedForms(Backend& backend, const cuda::runtime::DeviceInfo& device,
                        cuda::Stream stream, double flops, const float* y, int64_t outputs,
                        absl::FunctionRef<int(const cuda::WgmmaTiles& tiles)> launch, json* row) {
  // What the backend found wanting, or was told to do without, is left alone.
  const bool wgmma =
      device.major == 9 && backend.Describe().find(cuda::kPinnedByMma) == std::string::npos;
  std::vector<uint32_t> expected;
  for (const Form& form : kForms) {
    if (form.tiles.columns != 0 && !wgmma) continue;
    const double seconds = MedianSeconds(
        [&](int) { Check(cuda::runtime::LaunchStatus(form.name, launch(form.tiles)), "product"); },
        [&] { Check(cuda::runtime::Synchronize(stream), form.name); });
    json& own = (*row)[form.name];
    own = {{"us", seconds * 1e6}, {"tflops", flops / seconds * 1e-12}};
    std::vector<uint32_t> bits(static_cast<size_t>(std::min(kCompared, outputs)));
    Check(backend.CopyToHost(bits.data(), y, bits.size() * sizeof(float)), "copy");
    if (form.tiles.columns == 0) {
      expected = bits;
    } else {
      own["equal_bits"] = bits == expected;
      own["over_mma"] = (*row)["mma"]["us"].get<double>() / own["us"].get<double>();
    }
  }
}

json BenchPinnedForms(Backend& backend, const cuda::runtime::DeviceInfo& device) {
  json out = json::array();
  const cuda::Stream stream = Value(cuda::runtime::CreateStream(), "stream");
  const std::unique_ptr<Buffer> partials = Value(backend.Allocate(kPartialBytes), "allocate");
  const uint32_t zero = 0;
  const std::unique_ptr<Buffer> stuck = Upload(backend, &zero, sizeof(zero));
  for (const Shape& shape : kShapes) {
    const std::vector<uint16_t> w = RandomBf16(static_cast<size_t>(shape.n * shape.k), 1);
    const std::vector<uint16_t> x = RandomBf16(static_cast<size_t>(kMostTokens * shape.k), 2);
    const std::unique_ptr<Buffer> device_w = Upload(backend, w.data(), w.size() * 2);
    const std::unique_ptr<Buffer> device_x = Upload(backend, x.data(), x.size() * 2);
    const std::unique_ptr<Buffer> y = Value(
        backend.Allocate(static_cast<size_t>(kMostTokens * shape.n) * sizeof(float)), "allocate");
    Check(backend.Synchronize(), "upload");
    for (int64_t tokens : kBatches) {
      const cuda::GemmPinnedArgs args{.part = {.format = DType::kBF16,
                                               .rows = shape.n,
                                               .cols = shape.k,
                                               .quants = device_w->data()},
                                      .tokens = tokens,
                                      .rounded_x = device_x->data(),
                                      .y = FloatsOf(y),
                                      .y_stride = shape.n,
                                      .partials = FloatsOf(partials),
                                      .partial_bytes = kPartialBytes,
                                      .multiprocessors = device.multiprocessors};
      const double flops = 2.0 * static_cast<double>(tokens * shape.n * shape.k);
      json row = {{"shape", shape.name}, {"n", shape.n}, {"k", shape.k}, {"tokens", tokens}};
      const auto launch = [&](const cuda::WgmmaTiles& tiles) {
        return tiles.columns == 0 ? cuda::LaunchGemmPinned(args, stream)
                                  : cuda::LaunchGemmPinnedWgmma(
                                        args, tiles, static_cast<uint32_t*>(stuck->data()), stream);
      };
      MeasurePinnedForms(backend, device, stream, flops, args.y, tokens * shape.n, launch, &row);
      out.push_back(row);
    }
  }
  cuda::runtime::DestroyStream(stream);
  return out;
}

}  // namespace verbatim::bench
