// The configuration of `verbatim serve`: flags, their checks, and what they mean to the engine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "flags/flag_set.h"
#include "kernels/cpu/isa.h"
#include "kernels/device/open_backend.h"
#include "kernels/ops/policy.h"
#include "model/checkpoint.h"
#include "scheduler/scheduler.h"

namespace verbatim::server {

// Field defaults are the flags' defaults.
struct ServerConfig {
  std::string model;
  std::string served_model_name;  // empty: the model's file name without its extension
  std::string host = "127.0.0.1";
  int32_t port = 50051;  // 0: one that is free
  std::string port_file;

  std::optional<int64_t> max_num_seqs;  // filled in by Validate(): it depends on the device
  std::optional<int64_t> max_num_batched_tokens;  // likewise
  int64_t max_model_len = 0;  // 0: the model's context, or what the KV cache holds if that is less
  int64_t block_size = 32;    // tokens of a KV page
  // Either of these two after Validate(): bytes on a CPU, by default a share on a GPU.
  std::optional<int64_t> kv_cache_bytes;
  std::optional<double> gpu_memory_utilization;
  std::string kv_cache_dtype = "auto";
  std::string dtype = "auto";
  bool enable_prefix_caching = true;
  std::string batching_policy = "continuous";
  double max_batch_delay_ms = 5;
  double flush_timeout_ms = 500;
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 1 << 20;

  int32_t threads = 0;  // 0: every core this process may use
  std::string cpu_isa = "auto";
  std::string device = "cpu";
  std::string pinned_gemm = "auto";
  bool enforce_eager = false;
  int32_t tensor_parallel_size = 1;

  double moe_capacity_factor = 0;  // 0: no limit
  std::string moe_overflow = "drop";
  std::string moe_capacity_scope = "throughput";

  std::string default_determinism = "throughput";
  std::string determinism_policies = "throughput,pinned,portable";
  std::optional<uint64_t> seed;
  int32_t max_logprobs = 20;
  bool receipts = true;
  std::string receipt_signing_key;  // a PEM file; empty: receipts are not signed
  int64_t response_cache_mib = 0;   // 0: off
  bool allow_traces = false;
  double drain_timeout_s = 30;
  // Empty: the model's path with ".fragility.json" added, where that file exists and fits.
  std::string fragility_calibration;

  // The flags of `verbatim serve`; they write into `this`, which must outlive the result.
  flags::FlagSet Flags();

  // INVALID_ARGUMENT naming the flag ("--port: …") for what is wrong without knowing the model.
  // Fills in what depends on the device.
  absl::Status Validate();

  // Fills in what depends on the model: served_model_name, max_model_len, dtypes. INVALID_ARGUMENT
  // naming the flag.
  absl::Status Resolve(const model::ModelConfig& model);

  // After Validate().
  kernels::BackendOptions ToBackendOptions() const;

  // After Resolve().
  engine::EngineConfig ToEngineConfig() const;
  std::optional<kernels::cpu::Isa> Isa() const;  // nullopt: auto
  kernels::Policy DefaultPolicy() const;
  bool Allows(kernels::Policy policy) const;      // by --determinism-policies
  bool OnGpu() const { return device != "cpu"; }  // after Validate()
  // Whether experts are limited for deterministic requests too, which are then refused.
  bool LimitsEveryRow() const { return moe_capacity_factor > 0 && moe_capacity_scope == "all"; }

 private:
  absl::Status FillDeviceDefaults();
};

// "1073741824", "512MiB", "2GiB", "1.5GB": bytes, with KiB, MiB, GiB, TiB (powers of 1024) or kB,
// KB, MB, GB, TB (powers of 1000). INVALID_ARGUMENT for anything else or over 2^62.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

}  // namespace verbatim::server
