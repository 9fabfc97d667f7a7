// Whole decode steps and prefills on a GPU, of random weights in the shapes of real models, against
// the device's own limits: how fast it copies and multiplies. Prints one JSON object.
//
// Policies take turns within every repetition; a figure is the median over repetitions, with the
// least and the greatest. A decode step ends when the sampled tokens are on the host, as in the
// server. The limit of a step is the longer of two times: of reading its bytes (matrices that it
// uses, distinct experts as counted, K and V) at the measured rate of copies, and of its products
// at the measured rate of a product of 8192 × 8192 × 8192. "launches" compares the step as a CUDA
// graph, which the other figures are of, with launching its operations one by one.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/decode_launches.h"
#include "bench/must.h"
#include "bench/random_checkpoint.h"
#include "kernels/cuda/runtime.h"
#include "model/transformer.h"
#include "nlohmann/json.hpp"

ABSL_FLAG(std::vector<std::string>, shapes,
          std::vector<std::string>({"llama-3.1-8b", "qwen3-30b-a3b"}), "models, one after another");
ABSL_FLAG(std::vector<std::string>, sequences,
          std::vector<std::string>({"1", "8", "16", "64", "256"}), "sequences of a decode step");
ABSL_FLAG(int64_t, context, 1024, "positions behind each sequence of a decode step");
ABSL_FLAG(int64_t, prompt, 2048, "tokens of a prompt");
ABSL_FLAG(int64_t, prompts, 8, "prompts that are prefilled, one after another");
ABSL_FLAG(int, repetitions, 5, "how often the policies take turns");
ABSL_FLAG(int64_t, probe, 8192, "rows, columns and inner length of the product that is the limit");
ABSL_FLAG(int64_t, copy_mib, 2048, "size of the copy that is the limit");
ABSL_FLAG(double, seconds, 240, "cases that would begin after so many seconds are left out");
ABSL_FLAG(std::string, partial, "",
          "file with what has been measured so far, written after every case");

namespace verbatim::bench {
namespace {

namespace cuda = kernels::cuda;
using kernels::Backend;
using kernels::DType;
using kernels::Policy;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kPageTokens = 32;
constexpr Policy kPolicies[] = {Policy::kThroughput, Policy::kPinned, Policy::kPortable};

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds of one call, when `calls` are made in a row and then waited for.
double SecondsOf(const std::function<void()>& call, const std::function<void()>& wait, int calls) {
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < calls; ++i) call();
  wait();
  return SecondsSince(start) / calls;
}

// As many calls as take about 50 ms, at most 100.
int CallsFor(const std::function<void()>& call, const std::function<void()>& wait) {
  SecondsOf(call, wait, 1);
  const double once = SecondsOf(call, wait, 1);
  return std::clamp(static_cast<int>(0.05 / once), 1, 100);
}

struct Measured {
  double median = 0, least = 0, greatest = 0;  // seconds
};
Measured Summarise(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

class Bench {
 public:
  explicit Bench(LaunchTimer& backend) : backend_(backend), stream_(backend.stream()) {}

  // Bytes read and written a second by a large copy.
  double CopyRate();
  // Operations a second of a large THROUGHPUT product.
  double ProductRate();
  // Calls so_far with what has been measured after every case.
  json Model(const std::string& shape, double copy_rate, double product_rate,
             const std::function<bool()>& time_left,
             const std::function<void(const json&)>& so_far);

 private:
  std::function<void()> Wait() {
    return [this] { Must(backend_.Synchronize()); };
  }
  Measured Repeat(const std::function<void()>& call) {
    const int calls = CallsFor(call, Wait());
    std::vector<double> seconds;
    for (int i = 0; i < absl::GetFlag(FLAGS_repetitions); ++i) {
      seconds.push_back(SecondsOf(call, Wait(), calls));
    }
    return Summarise(std::move(seconds));
  }
  // Seconds of one product of `tokens` rows with every matrix of a dense layer.
  double LayerProducts(const RandomCheckpoint& checkpoint, int64_t tokens);
  json Decode(model::Transformer& transformer, const RandomCheckpoint& checkpoint,
              int64_t sequences, double copy_rate, double product_rate);
  json Prefill(model::Transformer& transformer, const RandomCheckpoint& checkpoint);

  LaunchTimer& backend_;
  const cuda::Stream stream_;
};

double Bench::CopyRate() {
  const size_t bytes = static_cast<size_t>(absl::GetFlag(FLAGS_copy_mib)) << 20;
  const auto from = Must(backend_.Allocate(bytes)), to = Must(backend_.Allocate(bytes));
  Must(cuda::runtime::Fill(from->data(), 1, bytes, stream_));
  const Measured copy = Repeat([&] {
    Must(cuda::runtime::CopyOnDevice(to->data(), from->data(), bytes, stream_));
    Must(cuda::runtime::Synchronize(stream_));
  });
  return 2.0 * static_cast<double>(bytes) / copy.median;
}

double Bench::ProductRate() {
  const int64_t n = absl::GetFlag(FLAGS_probe);
  model::ModelConfig square;
  square.vocab_size = square.hidden_size = n;
  const RandomCheckpoint random(square, 3);
  const kernels::StoredMatrix stored = Must(random.Matrix("embed"));
  const auto weight = Must(backend_.LoadMatrix({&stored, 1}, {}));
  const size_t bytes = static_cast<size_t>(n * n) * sizeof(float);
  const auto x = Must(backend_.Allocate(bytes)), y = Must(backend_.Allocate(bytes));
  std::vector<float> values(static_cast<size_t>(n * n));
  std::mt19937 engine(4);
  for (float& value : values) value = static_cast<float>(engine() >> 8) * 0x1p-24f - 0.5f;
  Must(backend_.CopyToDevice(x->data(), values.data(), bytes));
  const Measured product = Repeat([&] {
    Must(backend_.Gemm({.mode = {Policy::kThroughput},
                        .weight = weight.get(),
                        .tokens = n,
                        .x = static_cast<const float*>(x->data()),
                        .x_stride = n,
                        .y = static_cast<float*>(y->data()),
                        .y_stride = n}));
  });
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         product.median;
}

double Bench::LayerProducts(const RandomCheckpoint& checkpoint, int64_t tokens) {
  double seconds = 0;
  const std::vector<std::vector<std::string>> products = {
      {"layers.0.q", "layers.0.k", "layers.0.v"},
      {"layers.0.o"},
      {"layers.0.gate", "layers.0.up"},
      {"layers.0.down"}};
  for (const std::vector<std::string>& names : products) {
    std::vector<kernels::StoredMatrix> parts;
    for (const std::string& name : names) parts.push_back(Must(checkpoint.Matrix(name)));
    const auto weight = Must(backend_.LoadMatrix(parts, {}));
    const size_t x_bytes = static_cast<size_t>(tokens * weight->cols()) * sizeof(float);
    const auto x = Must(backend_.Allocate(x_bytes));
    const auto y =
        Must(backend_.Allocate(static_cast<size_t>(tokens * weight->rows()) * sizeof(float)));
    std::vector<float> values(static_cast<size_t>(tokens * weight->cols()));
    std::mt19937 engine(5);
    for (float& value : values) value = static_cast<float>(engine() >> 8) * 0x1p-24f - 0.5f;
    Must(backend_.CopyToDevice(x->data(), values.data(), x_bytes));
    seconds += Repeat([&] {
                 Must(backend_.Gemm({.mode = {Policy::kThroughput},
                                     .weight = weight.get(),
                                     .tokens = tokens,
                                     .x = static_cast<const float*>(x->data()),
                                     .x_stride = weight->cols(),
                                     .y = static_cast<float*>(y->data()),
                                     .y_stride = weight->rows()}));
               }).median;
  }
  return seconds;
}

// Sequences with a page table each; pages in shuffled order.
class Sequences {
 public:
  Sequences(Backend& backend, const model::ModelConfig& config, int64_t count, int64_t positions) {
    const int64_t each = (positions + kPageTokens - 1) / kPageTokens;
    cache_ = Must(backend.CreateKvCache({.num_layers = config.num_layers,
                                         .num_kv_heads = config.num_kv_heads,
                                         .head_dim = config.head_dim,
                                         .page_tokens = kPageTokens,
                                         .num_pages = each * count,
                                         .dtype = DType::kBF16}));
    std::vector<int32_t> ids(static_cast<size_t>(each * count));
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 engine(6);
    std::shuffle(ids.begin(), ids.end(), engine);
    for (int64_t s = 0; s < count; ++s) {
      pages_.emplace_back(ids.begin() + s * each, ids.begin() + (s + 1) * each);
    }
  }
  kernels::KvCache& cache() { return *cache_; }
  // Adds rows of sequence `s` to the batch, with random tokens below `vocab`.
  void Add(int64_t s, int64_t first_position, int64_t rows, int64_t vocab,
           model::ForwardBatch& batch) {
    const std::vector<int32_t>& pages = pages_[static_cast<size_t>(s)];
    batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                           .num_rows = static_cast<int32_t>(rows),
                           .first_position = static_cast<int32_t>(first_position),
                           .pages = pages.data(),
                           .num_pages = static_cast<int32_t>(pages.size())});
    for (int64_t i = 0; i < rows; ++i) {
      batch.tokens.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab)));
      batch.positions.push_back(static_cast<int32_t>(first_position + i));
    }
  }

 private:
  std::unique_ptr<kernels::KvCache> cache_;
  std::vector<std::vector<int32_t>> pages_;
  std::mt19937_64 random_{7};
};

json FigureOf(const Measured& seconds, double tokens) {
  return {{"ms", seconds.median * 1e3},
          {"least_ms", seconds.least * 1e3},
          {"greatest_ms", seconds.greatest * 1e3},
          {"tokens_per_s", tokens / seconds.median}};
}

// Repeats `call(policy)` for all policies in turn.
std::vector<Measured> InTurn(const std::function<void(Policy)>& call,
                             const std::function<void()>& wait) {
  std::vector<int> calls;
  std::vector<std::vector<double>> seconds(std::size(kPolicies));
  constexpr double kSlow = 2;  // a call of so many seconds is measured once
  for (size_t p = 0; p < std::size(kPolicies); ++p) {
    const auto once = [&] { call(kPolicies[p]); };
    const double warm_up = SecondsOf(once, wait, 1);
    if (warm_up < kSlow) {
      calls.push_back(CallsFor(once, wait));
    } else {
      calls.push_back(0);
      seconds[p].push_back(SecondsOf(once, wait, 1));
    }
  }
  for (int i = 0; i < absl::GetFlag(FLAGS_repetitions); ++i) {
    for (size_t p = 0; p < std::size(kPolicies); ++p) {
      if (calls[p] > 0)
        seconds[p].push_back(SecondsOf([&] { call(kPolicies[p]); }, wait, calls[p]));
    }
  }
  std::vector<Measured> out;
  for (std::vector<double>& list : seconds) out.push_back(Summarise(std::move(list)));
  return out;
}

json Bench::Decode(model::Transformer& transformer, const RandomCheckpoint& checkpoint,
                   int64_t sequences, double copy_rate, double product_rate) {
  const model::ModelConfig& config = checkpoint.config();
  const int64_t context = absl::GetFlag(FLAGS_context);
  Sequences histories(backend_, config, sequences, context + 1);
  // Histories that the kernels wrote themselves, a chunk at a time.
  const int64_t chunk = transformer.options().max_batch_rows;
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t first = 0; first < context; first += chunk) {
      model::ForwardBatch batch;
      histories.Add(s, first, std::min(chunk, context - first), config.vocab_size, batch);
      Must(transformer.Forward(batch, {Policy::kPinned}, histories.cache()));
    }
  }
  model::ForwardBatch batch;
  std::vector<int32_t> rows;
  std::vector<kernels::SamplingRow> sampling(static_cast<size_t>(sequences));
  std::vector<kernels::SampledRow> sampled(sampling.size());
  for (int64_t s = 0; s < sequences; ++s) {
    histories.Add(s, context, 1, config.vocab_size, batch);
    rows.push_back(static_cast<int32_t>(s));
    sampling[static_cast<size_t>(s)].seed = static_cast<uint64_t>(s);
    sampling[static_cast<size_t>(s)].position = static_cast<uint32_t>(context + 1);
  }
  const float* logits = nullptr;
  const auto model = [&](Policy policy) {
    Must(transformer.Forward(batch, {policy}, histories.cache()));
    logits = Must(transformer.ComputeLogits(rows, {policy}));
  };
  const auto sample = [&] {
    Must(backend_.Sample({.logits = logits,
                          .stride = config.vocab_size,
                          .vocab = config.vocab_size,
                          .rows = sampling,
                          .results = absl::MakeSpan(sampled)}));
  };
  const std::vector<Measured> seconds = InTurn(
      [&](Policy policy) {
        model(policy);
        sample();
      },
      [] {});
  for (const kernels::SampledRow& row : sampled) {
    if (!row.finite) Must(absl::InternalError("logits are not finite"));
  }
  double bytes = static_cast<double>(checkpoint.dense_bytes()) +
                 4.0 * static_cast<double>(config.num_layers * sequences * (context + 1) *
                                           config.num_kv_heads * config.head_dim);
  double flops = static_cast<double>(checkpoint.dense_bytes() * sequences);  // 2 a bf16 weight
  json out = {{"sequences", sequences}, {"context", context}};
  if (config.moe.num_experts > 0) {
    // Distinct (layer, expert) pairs of the step.
    const auto routing = Must(transformer.LastRouting());
    const size_t slots = static_cast<size_t>(routing.rows * config.moe.experts_per_token);
    std::set<std::pair<size_t, int32_t>> used;
    for (size_t i = 0; i < routing.experts.size(); ++i) {
      used.emplace(i / slots, routing.experts[i]);
    }
    const double expert_bytes = static_cast<double>(checkpoint.expert_bytes());
    bytes += static_cast<double>(used.size()) * expert_bytes;
    flops += static_cast<double>(routing.experts.size()) * expert_bytes;
    out["experts_used"] = used.size();
  }
  const double limit = std::max(bytes / copy_rate, flops / product_rate);
  out["limit_ms"] = limit * 1e3;
  out["limited_by"] = bytes / copy_rate > flops / product_rate ? "bytes" : "operations";
  for (size_t p = 0; p < std::size(kPolicies); ++p) {
    json figure = FigureOf(seconds[p], static_cast<double>(sequences));
    figure["share_of_limit"] = limit / seconds[p].median;
    constexpr double kSlow = 0.5;  // in a step of so many seconds launching is of no account
    if (seconds[p].median < kSlow) {
      figure["launches"] = MeasureLaunches(
          backend_, absl::GetFlag(FLAGS_repetitions), [&] { model(kPolicies[p]); }, sample);
    }
    out[std::string(NameOf(kPolicies[p]))] = figure;
  }
  out["pinned_over_throughput"] = seconds[0].median / seconds[1].median;
  out["portable_over_pinned"] = seconds[1].median / seconds[2].median;
  return out;
}

json Bench::Prefill(model::Transformer& transformer, const RandomCheckpoint& checkpoint) {
  const model::ModelConfig& config = checkpoint.config();
  const int64_t prompt = absl::GetFlag(FLAGS_prompt), prompts = absl::GetFlag(FLAGS_prompts);
  Sequences sequences(backend_, config, prompts, prompt);
  std::vector<model::ForwardBatch> batches(static_cast<size_t>(prompts));
  for (int64_t s = 0; s < prompts; ++s) {
    sequences.Add(s, 0, prompt, config.vocab_size, batches[static_cast<size_t>(s)]);
  }
  const std::vector<Measured> seconds = InTurn(
      [&](Policy policy) {
        for (const model::ForwardBatch& batch : batches) {
          Must(transformer.Forward(batch, {policy}, sequences.cache()));
        }
      },
      Wait());
  json out = {{"prompts", prompts}, {"tokens", prompt}};
  for (size_t p = 0; p < std::size(kPolicies); ++p) {
    out[std::string(NameOf(kPolicies[p]))] =
        FigureOf(seconds[p], static_cast<double>(prompts * prompt));
  }
  out["pinned_over_throughput"] = seconds[0].median / seconds[1].median;
  if (config.moe.num_experts == 0) {
    // What the same products alone take in THROUGHPUT.
    const double products =
        static_cast<double>(config.num_layers * prompts) * LayerProducts(checkpoint, prompt);
    out["products_alone_ms"] = products * 1e3;
    for (const Policy policy : kPolicies) {
      json& figure = out[std::string(NameOf(policy))];
      figure["share_of_products_alone"] = products * 1e3 / figure["ms"].get<double>();
    }
  }
  return out;
}

json Bench::Model(const std::string& shape, double copy_rate, double product_rate,
                  const std::function<bool()>& time_left,
                  const std::function<void(const json&)>& so_far) {
  const RandomCheckpoint checkpoint(Must(RandomModelConfig(shape)), 1);
  const Clock::time_point start = Clock::now();
  int64_t most = 1;
  std::vector<int64_t> counts;
  for (const std::string& text : absl::GetFlag(FLAGS_sequences)) {
    int64_t count = 0;
    if (!absl::SimpleAtoi(text, &count) || count < 1) {
      Must(absl::InvalidArgumentError(absl::StrCat("--sequences: '", text, "'")));
    }
    counts.push_back(count);
    most = std::max(most, count);
  }
  const int64_t prompt = absl::GetFlag(FLAGS_prompt);
  auto transformer = Must(model::Transformer::Load(
      backend_, checkpoint,
      {.max_batch_rows = std::max(prompt, most),
       .max_logit_rows = most,
       .max_model_len = std::max(prompt, absl::GetFlag(FLAGS_context) + 1)}));
  Must(backend_.Synchronize());
  json out = {{"shape", shape},
              {"weights", "random bf16, made on the device"},
              {"kv_pages", "bf16"},
              {"weight_bytes", checkpoint.weight_bytes()},
              {"device_weight_bytes", transformer->weight_bytes()},
              {"load_seconds", SecondsSince(start)}};
  const auto timed = [&](const char* kind, const std::function<json()>& measure) {
    if (time_left()) {
      out[kind].push_back(measure());
      so_far(out);
    } else {
      out[kind].push_back({{"left_out", "out of time"}});
    }
  };
  for (const int64_t count : counts) {
    timed("decode",
          [&] { return Decode(*transformer, checkpoint, count, copy_rate, product_rate); });
  }
  timed("prefill", [&] { return Prefill(*transformer, checkpoint); });
  return out;
}

int Main() {
  for (const auto& [flag, value] : {std::pair{"context", absl::GetFlag(FLAGS_context)},
                                    {"prompt", absl::GetFlag(FLAGS_prompt)},
                                    {"prompts", absl::GetFlag(FLAGS_prompts)},
                                    {"repetitions", int64_t{absl::GetFlag(FLAGS_repetitions)}},
                                    {"probe", absl::GetFlag(FLAGS_probe)},
                                    {"copy_mib", absl::GetFlag(FLAGS_copy_mib)}}) {
    if (value < 1) {
      std::fprintf(stderr, "cuda_model_bench: --%s is %lld\n", flag, static_cast<long long>(value));
      return 2;
    }
  }
  const Clock::time_point start = Clock::now();
  const auto time_left = [&] { return SecondsSince(start) < absl::GetFlag(FLAGS_seconds); };
  const std::unique_ptr<LaunchTimer> backend =
      LaunchTimer::Open(static_cast<size_t>(absl::GetFlag(FLAGS_copy_mib)) << 17);
  Bench bench(*backend);
  const double copy_rate = bench.CopyRate(), product_rate = bench.ProductRate();
  json out = {{"device", backend->Describe()},
              {"copy_gb_per_s", copy_rate * 1e-9},
              {"product_tflops", product_rate * 1e-12}};
  for (const Policy policy : kPolicies) {
    out["tags"][std::string(NameOf(policy))] = Must(backend->NumericsTag(policy));
  }
  // What is there when a later case fails, or takes longer than the caller waits.
  const auto so_far = [&](const json& model) {
    const std::string path = absl::GetFlag(FLAGS_partial);
    if (path.empty()) return;
    json partial = out;
    partial["models"].push_back(model);
    partial["partial"] = true;
    const std::string text = partial.dump(1);
    std::FILE* file = std::fopen((path + ".new").c_str(), "w");
    if (file == nullptr) return;
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if (std::fclose(file) == 0 && written) std::rename((path + ".new").c_str(), path.c_str());
  };
  for (const std::string& shape : absl::GetFlag(FLAGS_shapes)) {
    if (time_left()) {
      out["models"].push_back(bench.Model(shape, copy_rate, product_rate, time_left, so_far));
    } else {
      out["models"].push_back({{"shape", shape}, {"left_out", "out of time"}});
    }
  }
  out["seconds"] = SecondsSince(start);
  std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace verbatim::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return verbatim::bench::Main();
}
