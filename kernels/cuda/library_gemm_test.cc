// THROUGHPUT's matrix products by the library: against double precision, against the emulator's
// library spelt out, and the names that say what was chosen. A GPU without the library skips.
#include "kernels/cuda/library_gemm.h"

#include "gmock/gmock.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/backend_pair_test.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr NumericMode kFp32{Policy::kThroughput, ActivationType::kF32};
constexpr NumericMode kBf16{Policy::kThroughput, ActivationType::kBF16};
constexpr char kPinnedKernel[] = "cuda mma shards";

struct Product {
  NumericMode mode = kFp32;
  int64_t tokens = 1;
  std::vector<float> bias;
  bool residual = false;
  bool in_place = false;  // the residual is y
  int64_t apart = 0;      // of y_stride, beyond the rows
  int64_t offset = 0;     // of y in its array
  bool round_output = false;
};

class LibraryGemmTest : public BackendPairTest {
 protected:
  void SetUp() override {
    BackendPairTest::SetUp();
    if (!Described("throughput products by pinned kernels")) return;
    ASSERT_FALSE(test_device::Emulated());
    GTEST_SKIP() << cuda_->Describe();
  }
  bool Described(const char* text) const {
    return cuda_->Describe().find(text) != std::string::npos;
  }

  static constexpr float kUntouched = 12345.0f;
  std::vector<float> ResidualOf(int64_t tokens, int64_t rows) {
    return RandomFloats(static_cast<size_t>(tokens * rows), 7);
  }
  // [tokens, rows]; what lies between rows must stay as it was.
  std::vector<float> Run(Backend& backend, absl::Span<const StoredMatrix> parts,
                         const std::vector<float>& x, const Product& p) {
    auto weight = backend.LoadMatrix(parts, {});
    EXPECT_TRUE(weight.ok()) << weight.status();
    const int64_t rows = (*weight)->rows(), stride = rows + p.apart;
    std::vector<float> before(static_cast<size_t>(p.offset + p.tokens * stride), kUntouched);
    std::vector<float> residual = before;
    const std::vector<float> added = ResidualOf(p.tokens, rows);
    for (int64_t t = 0; t < p.tokens; ++t) {
      std::copy_n(&added[t * rows], rows, &residual[p.offset + t * stride]);
    }
    Arrays arrays(backend);
    float* y = arrays.Put(p.in_place ? residual : before);
    const float* c = !p.residual ? nullptr : p.in_place ? y : arrays.Put(residual);
    const absl::Status status = backend.Gemm({.mode = p.mode,
                                              .weight = weight->get(),
                                              .tokens = p.tokens,
                                              .x = arrays.Put(x),
                                              .x_stride = (*weight)->cols(),
                                              .y = y + p.offset,
                                              .y_stride = stride,
                                              .bias = p.bias.empty() ? nullptr : arrays.Put(p.bias),
                                              .residual = c == nullptr ? nullptr : c + p.offset,
                                              .round_output = p.round_output});
    EXPECT_TRUE(status.ok()) << status;
    const std::vector<float> all = arrays.Get(y, before.size());
    std::vector<float> out;
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      const int64_t column = i < p.offset ? rows : (i - p.offset) % stride;
      if (column < rows) {
        out.push_back(all[i]);
      } else {
        EXPECT_EQ(all[i], kUntouched) << "element " << i;
      }
    }
    return out;
  }
  std::string Kernel(const StoredMatrix& w, const NumericMode& mode, int64_t tokens) {
    auto weight = cuda_->LoadMatrix({&w, 1}, {});
    EXPECT_TRUE(weight.ok()) << weight.status();
    return cuda_->GemmKernel(mode, **weight, tokens);
  }
};

int64_t EmulatorsSplits(int64_t tokens) { return tokens <= 4 ? 4 : tokens <= 16 ? 2 : 1; }

// The emulator's library spelt out: ranges of the padded columns, then bias and rounding by our
// kernel.
TEST_F(LibraryGemmTest, IsTheLibrarysProduct) {
  if (!test_device::Emulated()) GTEST_SKIP() << "a GPU's library has its own order";
  const int64_t rows = 36;
  for (int64_t cols : {40, 320}) {
    const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 1);
    const std::vector<float> decoded = cpu::Decoded(w.stored);
    const int64_t padded = (cols + 63) / 64 * 64;
    const std::vector<float> bias = RandomFloats(rows, 2);
    const std::vector<Product> products = {
        {.tokens = 1},
        {.mode = kBf16, .tokens = 3, .residual = true, .in_place = true, .round_output = true},
        {.tokens = 4, .bias = bias, .residual = true},
        {.tokens = 9, .bias = bias, .apart = 3},
        {.mode = kBf16, .tokens = 16, .bias = bias, .offset = 1, .round_output = true},
        {.tokens = 17, .residual = true, .in_place = true, .apart = 4, .offset = 3},
        {.mode = kBf16, .tokens = 17},
    };
    for (const Product& p : products) {
      const std::vector<float> x = RandomFloats(static_cast<size_t>(p.tokens * cols), 3);
      const std::vector<float> residual = ResidualOf(p.tokens, rows);
      const int64_t splits = EmulatorsSplits(p.tokens);
      std::vector<float> expected;
      for (int64_t t = 0; t < p.tokens; ++t) {
        for (int64_t n = 0; n < rows; ++n) {
          float sum = 0.0f;
          for (int64_t split = 0; split < splits; ++split) {
            float part = 0.0f;
            const int64_t end = std::min(cols, (split + 1) * padded / splits);
            for (int64_t k = split * padded / splits; k < end; ++k) {
              part += numerics::RoundToBf16(x[t * cols + k]) * decoded[n * cols + k];
            }
            sum += part;
          }
          if (p.residual) sum = residual[t * rows + n] + sum;
          if (!p.bias.empty()) sum = sum + bias[n];
          expected.push_back(p.round_output ? numerics::RoundToBf16(sum) : sum);
        }
      }
      for (int s = 0; s < test_device::Schedules(); ++s) {
        const std::string name = test_device::UseSchedule(s);
        EXPECT_TRUE(SameBits(expected, Run(*cuda_, {&w.stored, 1}, x, p)))
            << cols << " columns, " << p.tokens << " tokens, " << name;
      }
    }
  }
}

// Parts of every kind are one product; sums in any order err by no more than this.
TEST_F(LibraryGemmTest, IsCloseToTheExactProduct) {
  for (const std::vector<DType>& formats :
       {std::vector<DType>{DType::kBF16}, {DType::kQ4_1, DType::kBF16, DType::kQ8_0}}) {
    const int64_t cols = 768;
    std::vector<cpu::TestMatrix> parts;
    std::vector<StoredMatrix> stored;
    std::vector<float> decoded;
    for (size_t i = 0; i < formats.size(); ++i) {
      parts.push_back(cpu::RandomMatrix(formats[i], 20 + 4 * static_cast<int64_t>(i), cols,
                                        static_cast<uint32_t>(10 + i)));
      const std::vector<float> values = cpu::Decoded(parts.back().stored);
      decoded.insert(decoded.end(), values.begin(), values.end());
    }
    for (const cpu::TestMatrix& part : parts) stored.push_back(part.stored);
    const int64_t rows = static_cast<int64_t>(decoded.size()) / cols;
    const std::vector<float> bias = RandomFloats(static_cast<size_t>(rows), 12);
    for (int64_t tokens : {1, 3, 24, 130}) {
      if (test_device::Slow() && tokens > 24) continue;
      const std::vector<float> x = RandomFloats(static_cast<size_t>(tokens * cols), 13);
      const std::vector<float> y =
          Run(*cuda_, stored, x, {.tokens = tokens, .bias = bias, .residual = true});
      const std::vector<float> residual = ResidualOf(tokens, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t n = 0; n < rows; ++n) {
          double exact = static_cast<double>(bias[n]) + residual[t * rows + n];
          double magnitude = std::abs(bias[n]) + std::abs(residual[t * rows + n]);
          for (int64_t k = 0; k < cols; ++k) {
            const double term = static_cast<double>(numerics::RoundToBf16(x[t * cols + k])) *
                                numerics::RoundToBf16(decoded[n * cols + k]);
            exact += term;
            magnitude += std::abs(term);
          }
          // An fp32 sum in any order; the matrix unit may cut each addend to 24 bits.
          ASSERT_NEAR(y[t * rows + n], exact, magnitude * static_cast<double>(cols) * 0x1p-23)
              << t << ", " << n;
        }
      }
    }
  }
}

// What the policies are about: the number of tokens moves a row's bits in THROUGHPUT and in no
// other.
TEST_F(LibraryGemmTest, TokensMoveThroughputsBitsAlone) {
  const int64_t cols = 1280, rows = 64, most = 20;
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 14);
  const std::vector<float> x = RandomFloats(most * cols, 15);
  for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
    const auto first_row = [&](int64_t tokens) {
      std::vector<float> y = Run(*cuda_, {&w.stored, 1}, {x.begin(), x.begin() + tokens * cols},
                                 {.mode = {policy}, .tokens = tokens});
      y.resize(rows);
      return y;
    };
    const std::vector<float> alone = first_row(1);
    bool moved = false;
    for (int64_t tokens : {2, 7, 20}) {
      const std::vector<float> among = first_row(tokens);
      moved = moved || !SameBits(alone, among);
      // Equal shapes, equal bits: what a replay lives on.
      EXPECT_TRUE(SameBits(among, first_row(tokens))) << NameOf(policy) << tokens << " tokens";
    }
    if (policy != Policy::kThroughput) {
      EXPECT_FALSE(moved) << NameOf(policy);
    } else if (test_device::Emulated()) {
      EXPECT_TRUE(moved);
    }
  }
}

TEST_F(LibraryGemmTest, NamesSayWhatWasChosen) {
  const cpu::TestMatrix bf16 = cpu::RandomMatrix(DType::kBF16, 64, 256, 16);
  const cpu::TestMatrix fp32 = cpu::RandomMatrix(DType::kF32, 64, 256, 17);
  const std::string one = Kernel(bf16.stored, kFp32, 1), many = Kernel(bf16.stored, kFp32, 64);
  EXPECT_THAT(one, HasSubstr("splitk"));
  EXPECT_THAT(many, HasSubstr("splitk"));
  EXPECT_EQ(one, Kernel(bf16.stored, kFp32, 1));
  EXPECT_EQ(one, Kernel(bf16.stored, kBf16, 1));
  if (test_device::Emulated()) {
    EXPECT_EQ(one, "reference splitk 4");
    EXPECT_EQ(many, "reference splitk 1");
  }
  // Of fp32 values in fp32: in the tree's order, as ever.
  EXPECT_EQ(Kernel(fp32.stored, kFp32, 1), "cuda tree");
  EXPECT_THAT(Kernel(fp32.stored, kBf16, 1), HasSubstr("splitk"));
  EXPECT_EQ(Kernel(bf16.stored, {Policy::kPinned}, 1), kPinnedKernel);
  EXPECT_EQ(Kernel(bf16.stored, {Policy::kPortable}, 1), "cuda tree");
  // The library's version is a part of THROUGHPUT's name alone.
  const std::string version = test_device::Emulated() ? "reference-1" : "cublaslt-13.";
  EXPECT_THAT(cuda_->Describe(), HasSubstr("throughput products by " + version));
  EXPECT_THAT(cuda_->NumericsTag(Policy::kThroughput).value(), HasSubstr(version));
  EXPECT_THAT(cuda_->NumericsTag(Policy::kPinned).value(), testing::Not(HasSubstr(version)));
}

// A batch that is padded to one of the numbers that the library is asked about has the algorithm of
// the one that is not; whether a GPU's algorithm then gives equal bits is its own affair.
TEST_F(LibraryGemmTest, PaddingChoosesNothingElse) {
  EXPECT_EQ(LibraryTokens(1), 1);
  EXPECT_EQ(LibraryTokens(2), 2);
  EXPECT_EQ(LibraryTokens(3), 4);
  EXPECT_EQ(LibraryTokens(9), 16);
  EXPECT_EQ(LibraryTokens(249), 256);
  EXPECT_EQ(LibraryTokens(257), 320);
  for (int64_t tokens = 1; tokens < 400; ++tokens) {
    EXPECT_EQ(LibraryTokens(GraphRows(tokens)), LibraryTokens(tokens)) << tokens;
  }
  const int64_t cols = 640, rows = 48;
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 22);
  for (int64_t tokens : {3, 5, 13, 17, 30}) {
    const int64_t padded = LibraryTokens(tokens);
    EXPECT_EQ(Kernel(w.stored, kFp32, tokens), Kernel(w.stored, kFp32, padded));
    if (!test_device::Emulated()) continue;
    const std::vector<float> x = RandomFloats(static_cast<size_t>(padded * cols), 23);
    std::vector<float> among = Run(*cuda_, {&w.stored, 1}, x, {.tokens = padded});
    among.resize(static_cast<size_t>(tokens * rows));
    EXPECT_TRUE(SameBits(among, Run(*cuda_, {&w.stored, 1}, {x.begin(), x.begin() + tokens * cols},
                                    {.tokens = tokens})))
        << tokens << " tokens";
  }
}

// A workspace that holds few rows: slices have names and products of their own.
TEST_F(LibraryGemmTest, SlicesOfASmallWorkspace) {
  const int64_t cols = 128, rows = 33, slice = 20;
  auto small = CudaBackend::Create({.library_workspace_bytes = size_t{4} << 20,
                                    .weight_block_bytes = 0,
                                    .workspace_bytes = (slice + 3) * cols * 2,
                                    .table_bytes = 4096,
                                    .staging_slot_bytes = 4096,
                                    .sampling_scratch_bytes = 4096,
                                    .sampling_list_bytes = 4096});
  ASSERT_TRUE(small.ok()) << small.status();
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, rows, cols, 18);
  for (int64_t tokens : {slice, 2 * slice, 2 * slice + 3}) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(tokens * cols), 19);
    const std::vector<float> whole =
        Run(**small, {&w.stored, 1}, x, {.tokens = tokens, .residual = true, .in_place = true});
    std::vector<float> pieces;
    const std::vector<float> residual = ResidualOf(tokens, rows);
    for (int64_t first = 0; first < tokens; first += slice) {
      const int64_t count = std::min(slice, tokens - first);
      const std::vector<float> piece =
          Run(*cuda_, {&w.stored, 1},
              {x.begin() + first * cols, x.begin() + (first + count) * cols}, {.tokens = count});
      for (float v : piece) pieces.push_back(residual[pieces.size()] + v);
    }
    if (test_device::Emulated()) {
      EXPECT_TRUE(SameBits(pieces, whole)) << tokens << " tokens";
    }
    auto weight = (*small)->LoadMatrix({&w.stored, 1}, {});
    ASSERT_TRUE(weight.ok());
    const std::string first = Kernel(w.stored, kFp32, slice), rest = Kernel(w.stored, kFp32, 3);
    EXPECT_EQ((*small)->GemmKernel(kFp32, **weight, tokens),
              tokens % slice == 0 || first == rest ? first : first + ", then " + rest);
  }
}

TEST_F(LibraryGemmTest, NotAskedForIsPinnedsProduct) {
  auto without = CudaBackend::Create({.library_products = false,
                                      .weight_block_bytes = 0,
                                      .workspace_bytes = 1 << 20,
                                      .table_bytes = 4096,
                                      .staging_slot_bytes = 4096,
                                      .sampling_scratch_bytes = 4096,
                                      .sampling_list_bytes = 4096});
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_THAT((*without)->Describe(), HasSubstr("products by pinned kernels (not asked for)"));
  const cpu::TestMatrix w = cpu::RandomMatrix(DType::kBF16, 48, 640, 20);
  const std::vector<float> x = RandomFloats(3 * 640, 21);
  const std::vector<float> pinned =
      Run(*cuda_, {&w.stored, 1}, x, {.mode = {Policy::kPinned}, .tokens = 3});
  EXPECT_TRUE(SameBits(pinned, Run(**without, {&w.stored, 1}, x, {.tokens = 3})));
  if (test_device::Emulated()) {
    EXPECT_FALSE(SameBits(pinned, Run(*cuda_, {&w.stored, 1}, x, {.tokens = 3})));
  }
  auto weight = (*without)->LoadMatrix({&w.stored, 1}, {});
  ASSERT_TRUE(weight.ok());
  EXPECT_THAT((*without)->GemmKernel(kFp32, **weight, 3), StartsWith(kPinnedKernel));
}

}  // namespace
}  // namespace verbatim::kernels::cuda
