#include "kernels/cpu/kv_cache.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr KvCacheConfig kConfig{
    .num_layers = 2, .num_kv_heads = 3, .head_dim = 20, .page_tokens = 16, .num_pages = 5};

float Stored(const CpuKvCache& cache, int64_t layer, int64_t page, int64_t head, int64_t element) {
  const std::byte* base = cache.Head(layer, page, head);
  if (cache.config().dtype == DType::kF32) return reinterpret_cast<const float*>(base)[element];
  return numerics::FloatFromBf16(reinterpret_cast<const uint16_t*>(base)[element]);
}

TEST(KvCacheTest, WritesEveryPositionOfASpanAndNothingElse) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int threads : {1, 3}) {
      KvCacheConfig config = kConfig;
      config.dtype = dtype;
      auto created = CpuKvCache::Create(config);
      ASSERT_TRUE(created.ok()) << created.status();
      const auto& cache = static_cast<const CpuKvCache&>(**created);
      ASSERT_TRUE((*created)->Poison({0, 1, 2, 3, 4}).ok());
      ThreadPool pool(threads);
      const CpuContext context{.pool = &pool, .isa = DetectIsa()};
      const int64_t stride = 200, rows = 700;
      std::vector<float> kv(rows * stride);
      for (size_t i = 0; i < kv.size(); ++i) kv[i] = static_cast<float>(i) * 0.01f - 3.0f;
      const std::vector<int32_t> pages = {4, 1, 3};
      // Positions 10 ... 40 from row 5 on: the end of page 4, all of page 1, the start of page 3.
      const SequenceSpan span{.first_row = 5,
                              .num_rows = 31,
                              .first_position = 10,
                              .pages = pages.data(),
                              .num_pages = 3};
      ASSERT_TRUE(KvWrite(context, {.cache = created->get(),
                                    .layer = 1,
                                    .k = kv.data(),
                                    .v = kv.data() + 60,
                                    .row_stride = stride,
                                    .spans = {&span, 1}})
                      .ok());
      for (int64_t layer = 0; layer < 2; ++layer) {
        for (int64_t page = 0; page < 5; ++page) {
          for (int64_t token = 0; token < 16; ++token) {
            int64_t position = -1;
            for (int64_t i = 0; i < 3; ++i) {
              if (pages[i] == page) position = i * 16 + token;
            }
            const bool written = layer == 1 && position >= 10 && position <= 40;
            for (int64_t head = 0; head < 3; ++head) {
              for (int64_t d = 0; d < 20; ++d) {
                const float k = Stored(cache, layer, page, head, d * 16 + token);
                const float v = Stored(cache, layer, page, head,
                                       cache.v_offset() + token * cache.v_stride() + d);
                if (!written) {
                  ASSERT_TRUE(std::isnan(k) && std::isnan(v)) << page << " " << token;
                  continue;
                }
                const float* row = kv.data() + (position - 10 + 5) * stride + head * 20 + d;
                const bool f32 = dtype == DType::kF32;
                ASSERT_EQ(k, f32 ? row[0] : numerics::RoundToBf16(row[0]));
                ASSERT_EQ(v, f32 ? row[60] : numerics::RoundToBf16(row[60]));
              }
            }
          }
        }
      }
    }
  }
}

TEST(KvCacheTest, PoisonTakesWholePagesOfAllLayers) {
  auto created = CpuKvCache::Create(kConfig);
  ASSERT_TRUE(created.ok());
  const auto& cache = static_cast<const CpuKvCache&>(**created);
  EXPECT_GE((*created)->size_bytes(), static_cast<size_t>(2 * 5 * 3 * cache.head_elements() * 4));
  ASSERT_TRUE((*created)->Poison({2}).ok());
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t page = 0; page < 5; ++page) {
      for (int64_t head = 0; head < 3; ++head) {
        for (int64_t i = 0; i < cache.head_elements(); ++i) {
          ASSERT_EQ(std::isnan(Stored(cache, layer, page, head, i)), page == 2);
        }
      }
    }
  }
  EXPECT_EQ((*created)->Poison({5}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*created)->Poison({-1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(KvCacheTest, RefusesImpossibleConfigurations) {
  const auto refused = [](KvCacheConfig config, absl::StatusCode code, const char* text) {
    const auto created = CpuKvCache::Create(config);
    ASSERT_EQ(created.status().code(), code) << created.status();
    EXPECT_NE(std::string(created.status().message()).find(text), std::string::npos)
        << created.status();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  for (int64_t bad : {-1, 0, 1, 15, 258}) {
    KvCacheConfig config = kConfig;
    config.head_dim = bad;
    refused(config, invalid, "head_dim");
  }
  for (int64_t bad : {-16, 0, 8, 24, 48, 512}) {
    KvCacheConfig config = kConfig;
    config.page_tokens = bad;
    refused(config, invalid, "page_tokens");
  }
  KvCacheConfig config = kConfig;
  config.dtype = DType::kF16;
  refused(config, invalid, "F16");
  config = kConfig;
  config.num_pages = 0;
  refused(config, invalid, "num_pages");
  config = kConfig;
  config.num_layers = INT64_MAX / 4;
  refused(config, absl::StatusCode::kResourceExhausted, "address space");
  config.num_layers = 1 << 20;
  config.num_pages = 1 << 20;  // some 16 PB
  refused(config, absl::StatusCode::kResourceExhausted, "cannot allocate");
}

TEST(KvCacheTest, WriteRefusesContradictions) {
  auto created = CpuKvCache::Create(kConfig);
  ASSERT_TRUE(created.ok());
  ThreadPool pool(1);
  const CpuContext context{.pool = &pool, .isa = DetectIsa()};
  std::vector<float> kv(1000);
  const std::vector<int32_t> pages = {0, 1};
  SequenceSpan span{.num_rows = 2, .first_position = 31, .pages = pages.data(), .num_pages = 2};
  KvWriteParams params{.cache = created->get(),
                       .k = kv.data(),
                       .v = kv.data(),
                       .row_stride = 60,
                       .spans = {&span, 1}};
  const auto refused = [&](const char* text) {
    const absl::Status status = KvWrite(context, params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status;
  };
  refused("33 positions need 3");
  span.first_position = 30;
  EXPECT_TRUE(KvWrite(context, params).ok());
  params.row_stride = 59;
  refused("row_stride 59");
  params.row_stride = 60;
  params.layer = -1;
  refused("layer -1");
  params.layer = 0;
  span.first_position = -1;
  refused("negative");
}

}  // namespace
}  // namespace verbatim::kernels::cpu
