// Tests of the flags of `verbatim serve`.
#include "server/server_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace verbatim::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

model::ModelConfig TinyModel() {
  model::ModelConfig model;
  model.num_layers = 2;
  model.num_kv_heads = 3;
  model.head_dim = 64;
  model.max_position = 4096;
  return model;
}

// Parses, validates and resolves, as RunServe does.
absl::Status Configure(std::vector<std::string> args, ServerConfig* config) {
  args.insert(args.begin(), "serve");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  flags::FlagSet flags = config->Flags();
  auto positional = flags.Parse(static_cast<int>(argv.size()), argv.data());
  if (!positional.ok()) return positional.status();
  if (absl::Status status = config->Validate(); !status.ok()) return status;
  return config->Resolve(TinyModel());
}

TEST(ServerConfig, EveryFlagReachesItsPlace) {
  ServerConfig config;
  const absl::Status status = Configure({"--model=/models/Tiny-1B.Q4_1.gguf",
                                         "--max_num_seqs=7",
                                         "--max-num-batched-tokens",
                                         "99",
                                         "--max-model-len=1000",
                                         "--block-size=64",
                                         "--kv-cache-bytes=64MiB",
                                         "--kv-cache-dtype=bfloat16",
                                         "--dtype=bfloat16",
                                         "--no-enable-prefix-caching",
                                         "--batching-policy=fixed",
                                         "--max-batch-delay-ms=2.5",
                                         "--flush_timeout_ms=75",
                                         "--max-queued-requests=11",
                                         "--max-queued-tokens=12",
                                         "--cpu-isa=avx2",
                                         "--threads=3",
                                         "--default-determinism=portable",
                                         "--determinism-policies=throughput,portable",
                                         "--seed=5",
                                         "--max-logprobs=6",
                                         "--receipt-signing-key=k.pem",
                                         "--response-cache=9",
                                         "--fragility-calibration=/c.json",
                                         "--port=0"},
                                        &config);
  ASSERT_TRUE(status.ok()) << status;
  const engine::EngineConfig engine = config.ToEngineConfig();
  EXPECT_EQ(engine.scheduler.policy, scheduler::BatchingPolicy::kFixed);
  EXPECT_EQ(engine.scheduler.max_num_seqs, 7);
  EXPECT_EQ(engine.scheduler.max_num_batched_tokens, 99);
  EXPECT_EQ(engine.scheduler.max_model_len, 1000);
  EXPECT_EQ(engine.scheduler.page_tokens, 64);
  EXPECT_EQ(engine.scheduler.num_pages, 0);
  EXPECT_FALSE(engine.scheduler.enable_prefix_caching);
  EXPECT_EQ(engine.scheduler.max_queued_requests, 11);
  EXPECT_EQ(engine.scheduler.max_queued_tokens, 12);
  EXPECT_EQ(engine.scheduler.max_batch_delay, absl::Microseconds(2500));
  EXPECT_EQ(engine.scheduler.flush_timeout, absl::Milliseconds(75));
  EXPECT_EQ(engine.kv_cache_bytes, int64_t{64} << 20);
  EXPECT_EQ(engine.kv_cache_dtype, kernels::DType::kBF16);
  EXPECT_EQ(engine.throughput_activations, kernels::ActivationType::kBF16);
  EXPECT_EQ(engine.max_logprobs, 6);
  ASSERT_EQ(engine.refused_policies.size(), 1u);
  EXPECT_EQ(engine.refused_policies.at(kernels::Policy::kPinned),
            "this server's --determinism-policies are throughput,portable");
  EXPECT_EQ(config.Isa(), kernels::cpu::Isa::kAvx2);
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.DefaultPolicy(), kernels::Policy::kPortable);
  EXPECT_EQ(config.seed, 5u);
  EXPECT_TRUE(config.receipts);
  EXPECT_EQ(config.receipt_signing_key, "k.pem");
  EXPECT_EQ(config.response_cache_mib, 9);
  EXPECT_EQ(config.fragility_calibration, "/c.json");
  EXPECT_EQ(config.served_model_name, "Tiny-1B.Q4_1");
}

TEST(ServerConfig, DefaultsFollowTheDevice) {
  ServerConfig cpu;
  ASSERT_TRUE(Configure({"--model=m.gguf"}, &cpu).ok());
  EXPECT_EQ(cpu.ToEngineConfig().scheduler.max_num_seqs, 64);
  EXPECT_EQ(cpu.ToEngineConfig().max_logit_rows, 64);
  EXPECT_EQ(cpu.ToEngineConfig().scheduler.max_num_batched_tokens, 512);
  EXPECT_EQ(cpu.ToEngineConfig().kv_cache_bytes, int64_t{1} << 30);
  EXPECT_EQ(cpu.ToEngineConfig().kv_cache_share, 0);
  EXPECT_EQ(cpu.ToEngineConfig().kv_cache_dtype, kernels::DType::kF32);
  ServerConfig gpu;
  ASSERT_TRUE(Configure({"--model=m.gguf", "--device=cuda:1"}, &gpu).ok());
  EXPECT_EQ(gpu.ToEngineConfig().scheduler.max_num_seqs, 256);
  EXPECT_EQ(gpu.ToEngineConfig().max_logit_rows, 256);
  EXPECT_EQ(gpu.ToEngineConfig().scheduler.max_num_batched_tokens, 2048);
  EXPECT_EQ(gpu.ToEngineConfig().kv_cache_share, 0.9);
  EXPECT_EQ(gpu.ToEngineConfig().kv_cache_dtype, kernels::DType::kBF16);
  EXPECT_EQ(gpu.max_model_len, 4096);
  EXPECT_EQ(gpu.ToBackendOptions().device, "cuda:1");
  EXPECT_TRUE(gpu.ToBackendOptions().matrix_units);
  EXPECT_TRUE(gpu.ToBackendOptions().wgmma);
  EXPECT_FALSE(gpu.ToBackendOptions().enforce_eager);
  ServerConfig eager;
  ASSERT_TRUE(Configure({"--model=m.gguf", "--device=cuda", "--enforce-eager"}, &eager).ok());
  EXPECT_TRUE(eager.ToBackendOptions().enforce_eager);
  EXPECT_THAT(std::string(Configure({"--model=m.gguf", "--enforce-eager"}, &cpu).message()),
              HasSubstr("--enforce-eager: is for --device cuda"));
}

TEST(ServerConfig, PinnedProductsWithoutWgmma) {
  ServerConfig config;
  ASSERT_TRUE(Configure({"--model=m.gguf", "--device=cuda", "--pinned-gemm=mma"}, &config).ok());
  EXPECT_FALSE(config.ToBackendOptions().wgmma);
  ServerConfig wrong;
  EXPECT_THAT(
      std::string(
          Configure({"--model=m.gguf", "--device=cuda", "--pinned-gemm=wgmma"}, &wrong).message()),
      HasSubstr("--pinned-gemm: 'wgmma' is not one of auto, mma"));
}

TEST(ServerConfig, OnAGpuMemoryIsAShareOrBytes) {
  const auto with = [](std::vector<std::string> flags, ServerConfig* config) {
    flags.insert(flags.begin(), {"--model=m.gguf", "--device=cuda"});
    return Configure(flags, config);
  };
  ServerConfig share;
  ASSERT_TRUE(with({"--gpu-memory-utilization=0.25"}, &share).ok());
  EXPECT_EQ(share.ToEngineConfig().kv_cache_share, 0.25);
  ServerConfig bytes;
  ASSERT_TRUE(with({"--kv-cache-bytes=64MiB", "--kv-cache-dtype=float32"}, &bytes).ok());
  EXPECT_EQ(bytes.ToEngineConfig().kv_cache_share, 0);
  EXPECT_EQ(bytes.ToEngineConfig().kv_cache_bytes, int64_t{64} << 20);
  EXPECT_EQ(bytes.ToEngineConfig().kv_cache_dtype, kernels::DType::kF32);
  for (const char* wrong : {"0", "-0.5", "1.01", "nan"}) {
    ServerConfig config;
    EXPECT_THAT(
        std::string(with({std::string("--gpu-memory-utilization=") + wrong}, &config).message()),
        HasSubstr("--gpu-memory-utilization: "))
        << wrong;
  }
  ServerConfig both;
  EXPECT_THAT(
      std::string(with({"--gpu-memory-utilization=0.5", "--kv-cache-bytes=1GiB"}, &both).message()),
      HasSubstr("--gpu-memory-utilization: and --kv-cache-bytes exclude"));
  ServerConfig portable;
  ASSERT_TRUE(
      with({"--determinism-policies=portable", "--default-determinism=portable"}, &portable).ok());
  EXPECT_FALSE(portable.ToBackendOptions().matrix_units);
}

TEST(ServerConfig, ErrorsNameTheFlag) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--port=-1", "--port: -1 is not in [0, 65535]"},
      {"--port=65536", "--port: 65536"},
      {"--port=http", "--port: 'http'"},
      {"--host=", "--host: is empty"},
      {"--max-num-seqs=0", "--max-num-seqs: 0"},
      {"--max-num-seqs=5000", "--max-num-seqs: 5000"},
      {"--max-num-batched-tokens=63", "--max-num-batched-tokens: 63 is less than --max-num-seqs"},
      {"--max-model-len=-1", "--max-model-len: -1"},
      {"--max-model-len=1", "--max-model-len: 1 leaves"},
      {"--max-model-len=4097", "--max-model-len: 4097 is more than the model's context"},
      {"--block-size=0", "--block-size: 0"},
      {"--block-size=48", "--block-size: 48"},
      {"--block-size=512", "--block-size: 512"},
      {"--kv-cache-bytes=0", "--kv-cache-bytes: 0"},
      {"--kv-cache-bytes=5", "--kv-cache-bytes: 5 does not hold one page"},
      {"--kv-cache-bytes=-1", "--kv-cache-bytes: '-1' is not a size"},
      {"--kv-cache-bytes=2Gb", "--kv-cache-bytes: '2Gb' is not a size"},
      {"--kv-cache-bytes=99999999TiB", "--kv-cache-bytes: '99999999TiB' is too large"},
      {"--kv-cache-dtype=fp8", "--kv-cache-dtype: 'fp8' is not one of auto, float32, bfloat16"},
      {"--dtype=half", "--dtype: 'half'"},
      {"--batching-policy=static", "--batching-policy: 'static'"},
      {"--max-batch-delay-ms=-1", "--max-batch-delay-ms: -1"},
      {"--max-batch-delay-ms=nan", "--max-batch-delay-ms: nan"},
      {"--flush-timeout-ms=inf", "--flush-timeout-ms: inf"},
      {"--max-queued-requests=0", "--max-queued-requests: 0"},
      {"--max-queued-tokens=0", "--max-queued-tokens: 0"},
      {"--threads=-1", "--threads: -1"},
      {"--threads=1025", "--threads: 1025"},
      {"--cpu-isa=sse2", "--cpu-isa: 'sse2'"},
      {"--pinned-gemm=mma", "--pinned-gemm: mma is for --device cuda"},
      {"--device=gpu", "--device: 'gpu' is not cpu, cuda or cuda:N"},
      {"--gpu-memory-utilization=0.5", "--gpu-memory-utilization: is for --device cuda"},
      {"--tensor-parallel-size=6", "--tensor-parallel-size: 6 is not a power of two"},
      {"--tensor-parallel-size=0", "--tensor-parallel-size: 0 is not a power of two"},
      {"--default-determinism=yes", "--default-determinism: 'yes'"},
      {"--determinism-policies=", "--determinism-policies: '' is not one of"},
      {"--determinism-policies=pinned,fast", "--determinism-policies: 'fast' is not one of"},
      {"--determinism-policies=pinned,portable", "--default-determinism: throughput is not among"},
      {"--seed=-5", "--seed: '-5'"},
      {"--max-logprobs=-1", "--max-logprobs: -1"},
      {"--response-cache=-1", "--response-cache: -1"},
      {"--response-cache=1.5", "--response-cache: '1.5'"},
      {"--receipts=perhaps", "--receipts: 'perhaps'"},
      {"--drain-timeout-s=-1", "--drain-timeout-s: -1"},
      {"--model=", "--model: is required"},
      {"--speed=9", "--speed: unknown flag"},
  };
  for (const auto& [arg, message] : cases) {
    ServerConfig config;
    const absl::Status status = Configure({"--model=m.gguf", arg}, &config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << arg;
    EXPECT_THAT(std::string(status.message()), StartsWith(message));
  }
}

TEST(ServerConfig, WithoutReceiptsThereIsNothingToSign) {
  ServerConfig config;
  EXPECT_EQ(
      Configure({"--model=m.gguf", "--no-receipts", "--receipt-signing-key=k"}, &config).message(),
      "--receipt-signing-key: has nothing to sign with --no-receipts");
  ServerConfig off;
  EXPECT_TRUE(Configure({"--model=m.gguf", "--no-receipts"}, &off).ok());
  EXPECT_FALSE(off.receipts);
}

TEST(ServerConfig, ContextFollowsModelAndCache) {
  ServerConfig config;
  ASSERT_TRUE(Configure({"--model=dir/name/"}, &config).ok());
  EXPECT_EQ(config.max_model_len, 4096);
  EXPECT_EQ(config.served_model_name, "name");
  EXPECT_EQ(config.dtype, "float32");

  // 2 · 2 layers · 3 heads · 64 · 4 bytes a position.
  const std::string two_pages = "--kv-cache-bytes=" + std::to_string(3072 * 64 + 1);
  ServerConfig small;
  ASSERT_TRUE(Configure({"--model=m.gguf", two_pages}, &small).ok());
  EXPECT_EQ(small.max_model_len, 64);
  ServerConfig too_small;
  EXPECT_THAT(
      std::string(
          Configure({"--model=m.gguf", two_pages, "--max-model-len=65"}, &too_small).message()),
      HasSubstr("--max-model-len: 65 is more than the 64 positions"));
}

TEST(ServerConfig, ByteSizes) {
  EXPECT_EQ(*ParseByteSize("12"), 12);
  EXPECT_EQ(*ParseByteSize("2GiB"), int64_t{2} << 30);
  EXPECT_EQ(*ParseByteSize("1.5KiB"), 1536);
  EXPECT_EQ(*ParseByteSize("3MB"), 3'000'000);
  for (const char* bad : {"", "GiB", "1 GiB", "1.2.3MB", "0x10", "1e9", "-1", "5X"}) {
    EXPECT_FALSE(ParseByteSize(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace verbatim::server
