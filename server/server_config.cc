// Flags of `verbatim serve` and their translation.
#include "server/server_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "model/shard_plan.h"

namespace verbatim::server {
namespace {

absl::Status Bad(std::string_view flag, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("--", std::string(flag), ": ", what));
}

struct IntRange {
  std::string_view flag;
  int64_t value, low, high;
};

struct RealRange {
  std::string_view flag;
  double value, high;  // low is 0
};

struct Choice {
  std::string_view flag;
  const std::string& value;
  std::initializer_list<const char*> values;
};

// All layers' keys and values of one position.
int64_t KvBytesPerToken(const model::ModelConfig& model, kernels::DType dtype) {
  return 2 * model.num_layers * model.num_kv_heads * model.head_dim *
         kernels::InfoOf(dtype).block_bytes;
}

kernels::DType KvDType(const std::string& name) {
  return name == "bfloat16" ? kernels::DType::kBF16 : kernels::DType::kF32;
}

}  // namespace

flags::FlagSet ServerConfig::Flags() {
  flags::FlagSet flags(
      "verbatim serve --model PATH [flags]",
      "Serves a language model over gRPC (verbatim.v1.VerbatimService, with health "
      "checking and reflection). Each request chooses by its field `determinism` "
      "whether its answer's bits may depend on the load.");
  flags.Group("Model");
  flags.Add("model", &model,
            "a .gguf file, a .safetensors file with config.json beside it, or a directory with "
            "both; required");
  flags.Add("served-model-name", &served_model_name,
            "the name that requests may give; default: the model's file name");
  flags.Add(
      "max-model-len", &max_model_len,
      "prompt and output tokens of one sequence; 0: the model's context, or what the KV cache "
      "holds if that is less");
  flags.Add(
      "dtype", &dtype,
      "activations of throughput mode: auto, float32 or bfloat16; the deterministic modes fix "
      "their own");

  flags.Group("Network");
  flags.Add("host", &host,
            "address to listen on; 0.0.0.0 for all (there is no encryption or authentication)");
  flags.Add("port", &port, "port to listen on; 0: one that is free");
  flags.Add("port-file", &port_file, "file that gets the port, written when the server is ready");
  flags.Add(
      "drain-timeout-s", &drain_timeout_s,
      "seconds that requests in flight get to finish after SIGTERM or SIGINT; a second signal "
      "ends them at once");

  flags.Group("Requests");
  flags.Add("default-determinism", &default_determinism,
            "of requests that do not say: throughput, pinned or portable");
  flags.Add("determinism-policies", &determinism_policies,
            "which of throughput, pinned and portable requests may ask for, separated by commas; "
            "others are refused with FAILED_PRECONDITION");
  flags.Add("seed", &seed,
            "seed of requests that bring none; default: a fresh random one for each, which is "
            "reported in the answer");
  flags.Add("max-logprobs", &max_logprobs,
            "most log-probabilities per token a request may ask for");
  flags.Add("allow-traces", &allow_traces,
            "let requests ask for a record of what decided their bits, which shows how busy the "
            "server was with others (but not with what)");
  flags.Add("max-queued-requests", &max_queued_requests,
            "samples that may wait; more are refused with RESOURCE_EXHAUSTED");
  flags.Add("max-queued-tokens", &max_queued_tokens,
            "prompt tokens that may wait; more are refused with RESOURCE_EXHAUSTED");
  flags.Add("receipts", &receipts,
            "give receipts to deterministic requests that ask for them, and verify receipts; a "
            "receipt holds the request's prompt and answer");
  flags.Add("receipt-signing-key", &receipt_signing_key,
            "PEM file with the Ed25519 private key that signs receipts; default: not signed");
  flags.Add("response-cache", &response_cache_mib,
            "MiB for whole answers of deterministic requests that are greedy or have a seed, given "
            "again to equal requests with the same cache_salt; 0: off");
  flags.Add("fragility-calibration", &fragility_calibration,
            "file of `verbatim lab fragility` for requests with return_fragility; default: the "
            "model's path with .fragility.json added, if that was made for this configuration");

  flags.Group("Batching");
  flags.Add("batching-policy", &batching_policy,
            "continuous: sequences join and leave at every step; dynamic: what arrives within "
            "--max-batch-delay-ms runs to completion; fixed: waits for --max-num-seqs sequences");
  flags.Add("max-num-seqs", &max_num_seqs,
            "sequences in one step; default: 64 on a CPU, 256 on a GPU");
  flags.Add("max-num-batched-tokens", &max_num_batched_tokens,
            "tokens in one step; longer prefills are cut into chunks; default: 512 on a CPU, 2048 "
            "on a GPU");
  flags.Add("max-batch-delay-ms", &max_batch_delay_ms, "dynamic: longest wait for more requests");
  flags.Add("flush-timeout-ms", &flush_timeout_ms,
            "fixed: after this long an incomplete batch runs");

  flags.Group("KV cache");
  flags.AddCustom(
      "kv-cache-bytes",
      "memory for keys and values, in bytes or as in 512MiB, 2GiB; default: 1GiB on a CPU, "
      "--gpu-memory-utilization on a GPU",
      [this](const std::string& text) {
        absl::StatusOr<int64_t> bytes = ParseByteSize(text);
        if (!bytes.ok()) return bytes.status();
        kv_cache_bytes = *bytes;
        return absl::OkStatus();
      },
      [this] { return kv_cache_bytes.has_value() ? absl::StrCat(*kv_cache_bytes) : ""; });
  flags.Add("gpu-memory-utilization", &gpu_memory_utilization,
            "on a GPU: the share, in (0, 1], of the memory that is free beside the weights which "
            "keys and values get; default: 0.9 without --kv-cache-bytes");
  flags.Add("kv-cache-dtype", &kv_cache_dtype,
            "auto (float32 on a CPU, bfloat16 on a GPU), float32 or bfloat16; part of what "
            "deterministic answers depend on");
  flags.Add("block-size", &block_size, "tokens of one page: 16, 32, 64, 128 or 256");
  flags.Add("enable-prefix-caching", &enable_prefix_caching,
            "reuse the pages of prompts that begin alike");

  flags.Group("Mixtures of experts");
  flags.Add("moe-capacity-factor", &moe_capacity_factor,
            "an expert takes at most ceil(F * tokens * experts per token / experts) tokens of a "
            "step, so that neighbours decide who gets it; 0: no limit");
  flags.Add("moe-overflow", &moe_overflow,
            "what becomes of a token whose expert is full: drop (that share of the layer is "
            "missing) or next (its next best expert that has room)");
  flags.Add("moe-capacity-scope", &moe_capacity_scope,
            "throughput: deterministic requests keep all their experts and count towards no "
            "limit; all: every token is limited, and deterministic requests are refused");

  flags.Group("Machine");
  flags.Add("threads", &threads, "threads that compute; 0: every core this process may use");
  flags.Add("cpu-isa", &cpu_isa,
            "auto, scalar, avx2 or avx512; never changes a deterministic answer");
  flags.Add("device", &device, kernels::kDeviceHelp);
  flags.Add("pinned-gemm", &pinned_gemm,
            "on a GPU, deterministic products of many tokens: auto (wgmma where the device has it "
            "and was seen at the start to give the bits of mma.sync) or mma; never changes an "
            "answer");
  flags.Add("enforce-eager", &enforce_eager,
            "on a GPU: launch each operation of a decode step by itself instead of replaying the "
            "step as a CUDA graph; never changes an answer");
  flags.Add("tensor-parallel-size", &tensor_parallel_size,
            "ranks that share the model out among them, a power of two: mpirun -n N verbatim serve "
            "--tensor-parallel-size N; never changes a deterministic answer");
  return flags;
}

absl::Status ServerConfig::FillDeviceDefaults() {
  if (!OnGpu() && gpu_memory_utilization.has_value()) {
    return Bad("gpu-memory-utilization", "is for --device cuda; a CPU takes --kv-cache-bytes");
  }
  if (!OnGpu() && pinned_gemm != "auto") {
    return Bad("pinned-gemm", absl::StrCat(pinned_gemm, " is for --device cuda"));
  }
  if (!OnGpu() && enforce_eager) {
    return Bad("enforce-eager", "is for --device cuda; a CPU records no steps");
  }
  if (gpu_memory_utilization.has_value() && kv_cache_bytes.has_value()) {
    return Bad("gpu-memory-utilization", "and --kv-cache-bytes exclude each other");
  }
  if (OnGpu() && !kv_cache_bytes.has_value()) {
    if (!gpu_memory_utilization.has_value()) gpu_memory_utilization = 0.9;
    if (!(*gpu_memory_utilization > 0 && *gpu_memory_utilization <= 1)) {  // also refuses NaN
      return Bad("gpu-memory-utilization",
                 absl::StrCat(*gpu_memory_utilization, " is not in (0, 1]"));
    }
  }
  if (!OnGpu() && !kv_cache_bytes.has_value()) kv_cache_bytes = int64_t{1} << 30;
  if (!max_num_seqs.has_value()) max_num_seqs = OnGpu() ? 256 : 64;
  if (!max_num_batched_tokens.has_value()) max_num_batched_tokens = OnGpu() ? 2048 : 512;
  return absl::OkStatus();
}

absl::Status ServerConfig::Validate() {
  if (model.empty()) return Bad("model", "is required");
  const absl::StatusOr<kernels::DeviceName> device_name = kernels::ParseDevice(device);
  if (!device_name.ok()) return device_name.status();
  if (absl::Status status = FillDeviceDefaults(); !status.ok()) return status;
  const auto limit = int64_t{1} << 30;
  for (const IntRange& range : std::initializer_list<IntRange>{
           {"port", port, 0, 65535},
           {"max-num-seqs", *max_num_seqs, 1, 4096},
           {"max-num-batched-tokens", *max_num_batched_tokens, 1, 65536},
           {"max-model-len", max_model_len, 0, limit},
           {"kv-cache-bytes", kv_cache_bytes.value_or(1), 1, int64_t{1} << 62},
           {"max-queued-requests", max_queued_requests, 1, limit},
           {"max-queued-tokens", max_queued_tokens, 1, int64_t{1} << 40},
           {"threads", threads, 0, 1024},
           {"max-logprobs", max_logprobs, 0, 1024},
           {"response-cache", response_cache_mib, 0, 1 << 20},
       }) {
    if (range.value < range.low || range.value > range.high) {
      return Bad(range.flag,
                 absl::StrCat(range.value, " is not in [", range.low, ", ", range.high, "]"));
    }
  }
  for (const RealRange& range : std::initializer_list<RealRange>{
           {"max-batch-delay-ms", max_batch_delay_ms, 60'000},
           {"flush-timeout-ms", flush_timeout_ms, 600'000},
           {"drain-timeout-s", drain_timeout_s, 86'400},
           {"moe-capacity-factor", moe_capacity_factor, 1'000'000},
       }) {
    if (!(range.value >= 0 && range.value <= range.high)) {  // also refuses NaN
      return Bad(range.flag, absl::StrCat(range.value, " is not in [0, ", range.high, "]"));
    }
  }
  for (const Choice& choice : std::initializer_list<Choice>{
           {"kv-cache-dtype", kv_cache_dtype, {"auto", "float32", "bfloat16"}},
           {"dtype", dtype, {"auto", "float32", "bfloat16"}},
           {"batching-policy", batching_policy, {"continuous", "dynamic", "fixed"}},
           {"cpu-isa", cpu_isa, {"auto", "scalar", "avx2", "avx512"}},
           {"pinned-gemm", pinned_gemm, {"auto", "mma"}},
           {"default-determinism", default_determinism, {"throughput", "pinned", "portable"}},
           {"moe-overflow", moe_overflow, {"drop", "next"}},
           {"moe-capacity-scope", moe_capacity_scope, {"throughput", "all"}},
       }) {
    if (std::none_of(choice.values.begin(), choice.values.end(),
                     [&](const char* value) { return choice.value == value; })) {
      return Bad(choice.flag, absl::StrCat("'", choice.value, "' is not one of ",
                                           absl::StrJoin(choice.values, ", ")));
    }
  }
  for (const absl::string_view name : absl::StrSplit(determinism_policies, ',')) {
    if (name != "throughput" && name != "pinned" && name != "portable") {
      return Bad("determinism-policies", absl::StrCat("'", name,
                                                      "' is not one of throughput, pinned, "
                                                      "portable"));
    }
  }
  if (!Allows(DefaultPolicy())) {
    return Bad("default-determinism",
               absl::StrCat(default_determinism, " is not among --determinism-policies ",
                            determinism_policies));
  }
  if (LimitsEveryRow() && default_determinism != "throughput") {
    return Bad(
        "default-determinism",
        absl::StrCat(default_determinism, " cannot be honoured with --moe-capacity-scope all"));
  }
  if (block_size < 16 || block_size > 256 || 256 % block_size != 0) {
    return Bad("block-size", absl::StrCat(block_size, " is not one of 16, 32, 64, 128, 256"));
  }
  if (*max_num_batched_tokens < *max_num_seqs) {
    return Bad("max-num-batched-tokens",
               absl::StrCat(*max_num_batched_tokens, " is less than --max-num-seqs ", *max_num_seqs,
                            ": each running sequence needs a token in every step"));
  }
  if (max_model_len == 1) return Bad("max-model-len", "1 leaves no room for output");
  if (!receipts && !receipt_signing_key.empty()) {
    return Bad("receipt-signing-key", "has nothing to sign with --no-receipts");
  }
  if (host.empty()) return Bad("host", "is empty");
  if (tensor_parallel_size < 1 || (tensor_parallel_size & (tensor_parallel_size - 1)) != 0) {
    return Bad("tensor-parallel-size",
               absl::StrCat(tensor_parallel_size, " is not a power of two"));
  }
  return absl::OkStatus();
}

absl::Status ServerConfig::Resolve(const model::ModelConfig& model_config) {
  if (served_model_name.empty()) {
    std::filesystem::path path(model);
    if (!path.has_filename()) path = path.parent_path();  // "dir/"
    const std::string extension = path.extension().string();
    served_model_name = extension == ".gguf" || extension == ".safetensors"
                            ? path.stem().string()
                            : path.filename().string();
  }
  // Of the rank that keeps most.
  const absl::StatusOr<int64_t> kv_heads = model::MostKvHeads(model_config, tensor_parallel_size);
  if (!kv_heads.ok()) {
    return Bad("tensor-parallel-size", std::string(absl::StripPrefix(kv_heads.status().message(),
                                                                     "tensor_parallel_size: ")));
  }
  if (moe_capacity_factor > 0 && model_config.moe.num_experts == 0) {
    return Bad("moe-capacity-factor", "the model is not a mixture of experts");
  }
  if (kv_cache_dtype == "auto") kv_cache_dtype = OnGpu() ? "bfloat16" : "float32";
  if (dtype == "auto") dtype = "float32";

  if (max_model_len > model_config.max_position) {
    return Bad("max-model-len", absl::StrCat(max_model_len, " is more than the model's context of ",
                                             model_config.max_position));
  }
  if (!kv_cache_bytes
           .has_value()) {  // known once the weights are there; the engine checks that it is enough
    if (max_model_len == 0) max_model_len = model_config.max_position;
    return absl::OkStatus();
  }
  model::ModelConfig of_rank = model_config;
  of_rank.num_kv_heads = *kv_heads;
  const int64_t page_bytes = KvBytesPerToken(of_rank, KvDType(kv_cache_dtype)) * block_size;
  const int64_t pages = *kv_cache_bytes / page_bytes;
  if (pages == 0) {
    return Bad("kv-cache-bytes",
               absl::StrCat(*kv_cache_bytes, " does not hold one page of ", page_bytes, " bytes"));
  }
  const int64_t capacity = pages * block_size;
  if (max_model_len > capacity) {
    return Bad("max-model-len",
               absl::StrCat(max_model_len, " is more than the ", capacity,
                            " positions that --kv-cache-bytes ", *kv_cache_bytes, " holds"));
  }
  if (max_model_len == 0) max_model_len = std::min(model_config.max_position, capacity);
  return absl::OkStatus();
}

engine::EngineConfig ServerConfig::ToEngineConfig() const {
  engine::EngineConfig out;
  out.scheduler.policy = batching_policy == "fixed"     ? scheduler::BatchingPolicy::kFixed
                         : batching_policy == "dynamic" ? scheduler::BatchingPolicy::kDynamic
                                                        : scheduler::BatchingPolicy::kContinuous;
  out.scheduler.max_num_seqs = *max_num_seqs;
  out.scheduler.max_num_batched_tokens = *max_num_batched_tokens;
  out.scheduler.max_model_len = max_model_len;
  if (OnGpu()) out.max_logit_rows = 256;
  out.scheduler.page_tokens = block_size;
  out.scheduler.num_pages = 0;  // as many as kv_cache_bytes holds
  out.scheduler.enable_prefix_caching = enable_prefix_caching;
  out.scheduler.max_queued_requests = max_queued_requests;
  out.scheduler.max_queued_tokens = max_queued_tokens;
  out.scheduler.max_batch_delay = absl::Milliseconds(max_batch_delay_ms);
  out.scheduler.flush_timeout = absl::Milliseconds(flush_timeout_ms);
  out.kv_cache_bytes = kv_cache_bytes.value_or(0);
  out.kv_cache_share = kv_cache_bytes.has_value() ? 0 : *gpu_memory_utilization;
  out.kv_cache_dtype = KvDType(kv_cache_dtype);
  out.throughput_activations =
      dtype == "bfloat16" ? kernels::ActivationType::kBF16 : kernels::ActivationType::kF32;
  out.moe_capacity_factor = moe_capacity_factor;
  out.moe_overflow =
      moe_overflow == "next" ? kernels::CapacityOverflow::kNext : kernels::CapacityOverflow::kDrop;
  out.max_logprobs = max_logprobs;
  out.allow_traces = allow_traces;
  if (LimitsEveryRow()) {
    for (const kernels::Policy policy : {kernels::Policy::kPinned, kernels::Policy::kPortable}) {
      out.refused_policies[policy] =
          "the expert layers are limited for every request (--moe-capacity-scope all), so that "
          "neighbours decide which experts answer";
    }
  }
  for (const kernels::Policy policy :
       {kernels::Policy::kThroughput, kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    if (Allows(policy)) continue;
    out.refused_policies[policy] =
        absl::StrCat("this server's --determinism-policies are ", determinism_policies);
  }
  return out;
}

kernels::BackendOptions ServerConfig::ToBackendOptions() const {
  return {.device = device,
          .threads = threads,
          .isa = Isa(),
          .matrix_units = Allows(kernels::Policy::kThroughput) || Allows(kernels::Policy::kPinned),
          .wgmma = pinned_gemm == "auto",
          .enforce_eager = enforce_eager};
}

std::optional<kernels::cpu::Isa> ServerConfig::Isa() const {
  if (cpu_isa == "scalar") return kernels::cpu::Isa::kScalar;
  if (cpu_isa == "avx2") return kernels::cpu::Isa::kAvx2;
  if (cpu_isa == "avx512") return kernels::cpu::Isa::kAvx512;
  return std::nullopt;
}

kernels::Policy ServerConfig::DefaultPolicy() const {
  if (default_determinism == "pinned") return kernels::Policy::kPinned;
  if (default_determinism == "portable") return kernels::Policy::kPortable;
  return kernels::Policy::kThroughput;
}

bool ServerConfig::Allows(kernels::Policy policy) const {
  const std::vector<std::string> names = absl::StrSplit(determinism_policies, ',');
  return std::find(names.begin(), names.end(), NameOf(policy)) != names.end();
}

absl::StatusOr<int64_t> ParseByteSize(const std::string& text) {
  const size_t digits = text.find_first_not_of("0123456789.");
  const std::string number = text.substr(0, digits);
  const std::string unit = digits == std::string::npos ? "" : text.substr(digits);
  constexpr std::array<std::pair<std::string_view, double>, 11> kUnits = {
      {{"", 1},
       {"B", 1},
       {"kB", 1e3},
       {"KB", 1e3},
       {"MB", 1e6},
       {"GB", 1e9},
       {"TB", 1e12},
       {"KiB", 1024.0},
       {"MiB", 1024.0 * 1024},
       {"GiB", 1024.0 * 1024 * 1024},
       {"TiB", 1024.0 * 1024 * 1024 * 1024}}};
  const auto known = std::find_if(kUnits.begin(), kUnits.end(),
                                  [&](const auto& entry) { return entry.first == unit; });
  double value = 0;
  if (number.empty() || known == kUnits.end() || !absl::SimpleAtod(number, &value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a size; write bytes, or as in 512MiB, 2GiB, 1.5GB"));
  }
  const double bytes = value * known->second;
  if (bytes > std::ldexp(1.0, 62)) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is too large"));
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace verbatim::server
