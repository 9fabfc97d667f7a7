// A layer's experts, loaded once, and several random choices of them taken in turn.
#include "bench/cuda_grouped_gemm.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda_bench_support.h"

namespace verbatim::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::Policy;
using nlohmann::json;

constexpr int64_t kExperts = 128, kTopK = 8;
constexpr int64_t kHidden = 2048, kIntermediate = 768;
constexpr int64_t kMostTokens = 2048;
constexpr int64_t kBatches[] = {1, 8, 64, 256, kMostTokens};
// One token's experts fit into the second-level cache; so many different choices do not.
constexpr int kRoutings = 16;

struct Shape {
  const char* name;
  int64_t n, k;
  bool gathers;  // reads rows of tokens, as the first product does; else of places
};
constexpr Shape kShapes[] = {{"gate_up", 2 * kIntermediate, kHidden, true},
                             {"down", kHidden, kIntermediate, false}};

// Which places belong to which expert, on the device.
struct Routing {
  std::unique_ptr<Buffer> offsets, token_of;
  int64_t experts_used = 0, largest = 0;
};

Routing MakeRouting(Backend& backend, int64_t tokens, uint64_t seed) {
  Random random(seed);
  std::vector<std::vector<int32_t>> tokens_of(kExperts);
  std::vector<int32_t> experts(kExperts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t rank = 0; rank < kTopK; ++rank) {
      std::swap(experts[rank], experts[rank + random.Next() % (kExperts - rank)]);
      tokens_of[experts[rank]].push_back(static_cast<int32_t>(t));
    }
  }
  std::vector<int32_t> offsets = {0}, token_of;
  Routing routing;
  for (const std::vector<int32_t>& own : tokens_of) {
    token_of.insert(token_of.end(), own.begin(), own.end());
    offsets.push_back(static_cast<int32_t>(token_of.size()));
    routing.experts_used += own.empty() ? 0 : 1;
    routing.largest = std::max(routing.largest, static_cast<int64_t>(own.size()));
  }
  routing.offsets = Upload(backend, offsets.data(), offsets.size() * sizeof(int32_t));
  routing.token_of = Upload(backend, token_of.data(), token_of.size() * sizeof(int32_t));
  return routing;
}

const int32_t* IntsOf(const std::unique_ptr<Buffer>& buffer) {
  return static_cast<const int32_t*>(buffer->data());
}

}  // namespace

json BenchGroupedGemm(Backend& backend, double copy_rate) {
  json out = json::array();
  for (const Shape& shape : kShapes) {
    const size_t elements = static_cast<size_t>(shape.n * shape.k);
    std::vector<std::unique_ptr<kernels::WeightMatrix>> experts;
    std::vector<const kernels::WeightMatrix*> weights;
    for (int64_t e = 0; e < kExperts; ++e) {
      const std::vector<uint16_t> values = RandomBf16(elements, static_cast<uint64_t>(e + 1));
      const kernels::StoredMatrix stored{kernels::DType::kBF16, shape.n, shape.k,
                                         reinterpret_cast<const std::byte*>(values.data())};
      experts.push_back(Value(backend.LoadMatrix({&stored, 1}, {}), "load"));
      weights.push_back(experts.back().get());
    }
    const int64_t x_rows = shape.gathers ? kMostTokens : kMostTokens * kTopK;
    const std::vector<float> x = RandomFloats(static_cast<size_t>(x_rows * shape.k), 2);
    const std::unique_ptr<Buffer> device_x = Upload(backend, x.data(), x.size() * sizeof(float));
    const std::unique_ptr<Buffer> y =
        Value(backend.Allocate(static_cast<size_t>(kMostTokens * kTopK * shape.n) * sizeof(float)),
              "allocate");
    for (int64_t tokens : kBatches) {
      std::vector<Routing> routings;
      double used = 0;
      int64_t largest = 0;
      for (int i = 0; i < kRoutings; ++i) {
        routings.push_back(MakeRouting(backend, tokens, static_cast<uint64_t>(100 + i)));
        used += static_cast<double>(routings.back().experts_used) / kRoutings;
        largest = std::max(largest, routings.back().largest);
      }
      const int64_t places = tokens * kTopK, rows = shape.gathers ? tokens : places;
      const double flops = 2.0 * static_cast<double>(places * shape.n * shape.k);
      const double bytes = 2.0 * used * static_cast<double>(elements) +
                           4.0 * static_cast<double>(rows * shape.k + places * shape.n);
      json row = {{"shape", shape.name}, {"n", shape.n},         {"k", shape.k},
                  {"tokens", tokens},    {"experts_used", used}, {"largest_count", largest}};
      for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
        const double seconds = MedianSeconds(
            [&](int i) {
              const Routing& routing = routings[static_cast<size_t>(i % kRoutings)];
              Check(backend.GroupedGemm({.mode = {policy},
                                         .weights = weights,
                                         .offsets = IntsOf(routing.offsets),
                                         .max_places = places,
                                         .x = FloatsOf(device_x),
                                         .x_rows = rows,
                                         .x_stride = shape.k,
                                         .rows = shape.gathers ? IntsOf(routing.token_of) : nullptr,
                                         .y = FloatsOf(y),
                                         .y_stride = shape.n}),
                    "grouped gemm");
            },
            [&] { Check(backend.Synchronize(), "grouped gemm"); });
        row[std::string(NameOf(policy))] = {
            {"us", seconds * 1e6},
            {"tflops", flops / seconds * 1e-12},
            {"bandwidth_share", copy_rate > 0 ? bytes / seconds / copy_rate : 0.0}};
      }
      out.push_back(row);
    }
  }
  return out;
}

}  // namespace verbatim::bench
