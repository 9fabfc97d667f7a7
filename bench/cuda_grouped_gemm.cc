// A layer's experts, loaded once, and several random choices of them taken in turn.
#include "bench/cuda_grouped_gemm.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda_bench_support.h"
#include "bench/cuda_pinned_forms.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pinned_gemm_form.h"

namespace verbatim::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::Policy;
using nlohmann::json;
namespace cuda = kernels::cuda;

constexpr int64_t kExperts = 128, kTopK = 8;
constexpr int64_t kHidden = 2048, kIntermediate = 768;
constexpr int64_t kMostTokens = 8192;
constexpr int64_t kBatches[] = {1, 8, 64, 256, 2048, kMostTokens};
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

// The kernels themselves, whatever the backend would choose.
class Forms {
 public:
  Forms(Backend& backend, const cuda::runtime::DeviceInfo& device, const Shape& shape,
        const std::vector<const kernels::WeightMatrix*>& weights)
      : backend_(backend),
        device_(device),
        shape_(shape),
        stream_(Value(cuda::runtime::CreateStream(), "stream")) {
    std::vector<cuda::PackedPart> parts;
    for (const kernels::WeightMatrix* weight : weights) {
      parts.push_back(dynamic_cast<const cuda::CudaMatrix&>(*weight).bf16());
    }
    parts_ = Upload(backend, parts.data(), parts.size() * sizeof(cuda::PackedPart));
    const std::vector<char> zeros(parts.size() * cuda::kWeightMapBytes);
    std::vector<char> maps = zeros;
    if (device.major == 9) {
      Check(cuda::runtime::LaunchStatus("maps",
                                        cuda::MakeWeightMaps(parts.data(), kExperts, maps.data())),
            "maps");
    }
    maps_ = Upload(backend, maps.data(), maps.size());
    words_ = Upload(backend, zeros.data(), 2 * sizeof(uint32_t));
    rounded_ =
        Value(backend.Allocate(static_cast<size_t>(kMostTokens * kTopK * shape.k) * 2), "allocate");
  }
  ~Forms() { cuda::runtime::DestroyStream(stream_); }
  Forms(const Forms&) = delete;
  Forms& operator=(const Forms&) = delete;

  json Measure(const Routing& routing, int64_t tokens, const float* x, float* y) const {
    const int64_t places = tokens * kTopK;
    auto* const words = static_cast<uint32_t*>(words_->data());
    cuda::RoundRowsArgs rounding{.places = {.offsets = IntsOf(routing.offsets),
                                            .num_experts = kExperts,
                                            .begin = 0,
                                            .end = places,
                                            .max_places = places,
                                            .rows = nullptr,
                                            .x_rows = shape_.gathers ? tokens : places,
                                            .fault = &words[0]},
                                 .x = x,
                                 .x_stride = shape_.k,
                                 .first_row = 0,
                                 .num_rows = shape_.gathers ? tokens : places,
                                 .cols = shape_.k,
                                 .rounded = rounded_->data()};
    const auto microseconds = [&] {
      return 1e6 * MedianSeconds(
                       [&](int) {
                         Check(cuda::runtime::LaunchStatus(
                                   "round", cuda::LaunchRoundRows(rounding, stream_)),
                               "round");
                       },
                       [&] { Check(cuda::runtime::Synchronize(stream_), "round"); });
    };
    Check(backend_.Synchronize(), "upload");
    json row = {{"rounding_us", microseconds()}};
    if (shape_.gathers) {
      rounding.places.rows = IntsOf(routing.token_of);
      rounding.num_rows = places;
      row["rounding_and_gathering_us"] = microseconds();
    }
    cuda::GroupedGemmArgs args{.places = rounding.places,
                               .format = kernels::DType::kBF16,
                               .parts = static_cast<const cuda::PackedPart*>(parts_->data()),
                               .maps = maps_->data(),
                               .most_rows = shape_.n,
                               .cols = shape_.k,
                               .rounded_x = rounded_->data(),
                               .y = y,
                               .y_stride = shape_.n};
    args.places.rows = nullptr;
    args.places.x_rows = places;
    MeasurePinnedForms(
        backend_, device_, stream_, 2.0 * static_cast<double>(places * shape_.n * shape_.k), y,
        places * shape_.n,
        [&](const cuda::WgmmaTiles& tiles) {
          return tiles.columns == 0 ? cuda::LaunchGroupedGemmPinned(args, stream_)
                                    : cuda::LaunchGroupedGemmWgmma(
                                          args, tiles, device_.multiprocessors, &words[1], stream_);
        },
        &row);
    return row;
  }

 private:
  Backend& backend_;
  const cuda::runtime::DeviceInfo& device_;
  const Shape shape_;
  const cuda::Stream stream_;
  std::unique_ptr<Buffer> parts_, maps_, words_, rounded_;
};

}  // namespace

json BenchGroupedGemm(Backend& backend, const cuda::runtime::DeviceInfo& device, double copy_rate) {
  json out = json::array();
  for (const Shape& shape : kShapes) {
    const size_t elements = static_cast<size_t>(shape.n * shape.k);
    std::vector<std::unique_ptr<kernels::WeightMatrix>> experts;
    std::vector<const kernels::WeightMatrix*> weights;
    for (int64_t e = 0; e < kExperts; ++e) {
      const std::vector<uint16_t> values = RandomBf16(elements, static_cast<uint64_t>(e + 1));
      const kernels::StoredMatrix stored{kernels::DType::kBF16, shape.n, shape.k,
                                         reinterpret_cast<const std::byte*>(values.data())};
      experts.push_back(Value(backend.LoadMatrix({&stored, 1}, {.for_experts = true}), "load"));
      weights.push_back(experts.back().get());
    }
    const int64_t x_rows = shape.gathers ? kMostTokens : kMostTokens * kTopK;
    const std::vector<float> x = RandomFloats(static_cast<size_t>(x_rows * shape.k), 2);
    const std::unique_ptr<Buffer> device_x = Upload(backend, x.data(), x.size() * sizeof(float));
    const std::unique_ptr<Buffer> y =
        Value(backend.Allocate(static_cast<size_t>(kMostTokens * kTopK * shape.n) * sizeof(float)),
              "allocate");
    const Forms forms(backend, device, shape, weights);
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
      if (places > cuda::PinnedGemmForm::kFewPlacesEach * kExperts) {
        row["pinned_forms"] =
            forms.Measure(routings.front(), tokens, FloatsOf(device_x), FloatsOf(y));
      }
      out.push_back(row);
    }
  }
  return out;
}

}  // namespace verbatim::bench
