// GGUF files that tell the truth, and every way of lying that we could think of.
#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <random>

#include "model/checkpoint_test_files.h"

namespace verbatim::model {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using testing::GgufString;
using ::testing::HasSubstr;
using testing::PatternBytes;
using testing::Raw;
using testing::TemporaryDirectory;
using testing::WithInteger;

// One of everything.
GgufBuilder SmallFile() {
  GgufBuilder builder;
  builder.AddString("general.architecture", "llama")
      .Add("a.u8", testing::kU8, Raw<uint8_t>(200))
      .Add("a.i8", testing::kI8, Raw<int8_t>(-100))
      .Add("a.u16", testing::kU16, Raw<uint16_t>(60000))
      .Add("a.i16", testing::kI16, Raw<int16_t>(-30000))
      .Add("a.u32", testing::kU32, Raw<uint32_t>(4000000000))
      .Add("a.i32", testing::kI32, Raw<int32_t>(-2000000000))
      .Add("a.u64", testing::kU64, Raw<uint64_t>(~uint64_t{0}))
      .Add("a.i64", testing::kI64, Raw<int64_t>(-5000000000))
      .Add("a.f32", testing::kF32, Raw(1.5f))
      .Add("a.f64", testing::kF64, Raw(0.1))
      .Add("a.true", testing::kBool, Raw<uint8_t>(1))
      .Add("a.false", testing::kBool, Raw<uint8_t>(0))
      .AddArray("b.strings", testing::kString, 3,
                GgufString("x") + GgufString("") + GgufString("yz"))
      .AddArray("b.i16", testing::kI16, 2, Raw<int16_t>(-1) + Raw<int16_t>(7))
      .AddArray("b.f32", testing::kF32, 2, Raw(0.5f) + Raw(-2.0f))
      .AddArray("b.bool", testing::kBool, 2, std::string("\1\0", 2))
      .AddArray("b.empty", testing::kU32, 0, "")
      .AddTensor("matrix", {3, 64}, 8, PatternBytes(3 * 2 * 34, 1))
      .AddTensor("vector", {5}, 0, PatternBytes(20, 2))
      .AddTensor("cube", {2, 3, 4}, 1, PatternBytes(48, 3));
  return builder;
}

class GgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(const std::string& bytes) {
    return GgufFile::Open(directory_.Write("m.gguf", bytes));
  }
  absl::Status StatusOf(const std::string& bytes) { return OpenBytes(bytes).status(); }

  TemporaryDirectory directory_;
};

// Reads every byte of every tensor, so that a pointer outside the mapping is found.
uint64_t ReadEverything(const GgufFile& file) {
  uint64_t sum = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    for (int64_t i = 0; i < tensor.size_bytes; ++i) sum += std::to_integer<uint8_t>(tensor.data[i]);
  }
  return sum;
}

void ExpectClear(const absl::Status& status, const std::string& what) {
  if (status.ok()) return;
  EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status))
      << what << ": " << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf: offset ")) << what;
}

TEST_F(GgufTest, ReadsEveryTypeOfValue) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder builder = SmallFile();
    builder.version = version;
    const auto file = OpenBytes(builder.Build());
    ASSERT_TRUE(file.ok()) << file.status();
    const GgufFile& gguf = **file;
    EXPECT_EQ(gguf.metadata().size(), 18u);
    EXPECT_EQ(*gguf.GetString("general.architecture"), "llama");
    EXPECT_EQ(*gguf.GetInt("a.u8"), 200);
    EXPECT_EQ(*gguf.GetInt("a.i8"), -100);
    EXPECT_EQ(*gguf.GetInt("a.u16"), 60000);
    EXPECT_EQ(*gguf.GetInt("a.i16"), -30000);
    EXPECT_EQ(*gguf.GetInt("a.u32"), 4000000000);
    EXPECT_EQ(*gguf.GetInt("a.i32"), -2000000000);
    EXPECT_EQ(*gguf.GetInt("a.i64"), -5000000000);
    EXPECT_EQ(std::get<uint64_t>(gguf.metadata().find("a.u64")->second), ~uint64_t{0});
    EXPECT_EQ(*gguf.GetFloat("a.f32"), 1.5);
    EXPECT_EQ(*gguf.GetFloat("a.f64"), 0.1);
    EXPECT_TRUE(*gguf.GetBool("a.true"));
    EXPECT_FALSE(*gguf.GetBool("a.false"));
    EXPECT_THAT((*gguf.GetArray("b.strings"))->strings, ElementsAre("x", "", "yz"));
    EXPECT_THAT((*gguf.GetArray("b.i16"))->ints, ElementsAre(-1, 7));
    EXPECT_THAT((*gguf.GetArray("b.f32"))->floats, ElementsAre(0.5, -2.0));
    EXPECT_THAT((*gguf.GetArray("b.bool"))->ints, ElementsAre(1, 0));
    EXPECT_TRUE((*gguf.GetArray("b.empty"))->ints.empty());
  }
}

TEST_F(GgufTest, TypedLookUpsRefuseOtherTypes) {
  const auto file = OpenBytes(SmallFile().Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(absl::IsNotFound((*file)->GetInt("absent").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetInt("a.f32").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetInt("a.true").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetFloat("a.u8").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetString("a.u8").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetBool("a.u8").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->GetArray("a.u8").status()));
  const absl::Status too_large = (*file)->GetInt("a.u64").status();
  EXPECT_TRUE(absl::IsInvalidArgument(too_large));
  EXPECT_THAT(std::string(too_large.message()), HasSubstr("a.u64"));
}

TEST_F(GgufTest, TensorsHaveTheirShapesAndBytes) {
  const auto file = OpenBytes(SmallFile().Build());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& tensors = (*file)->tensors();
  ASSERT_EQ(tensors.size(), 3u);
  const GgufTensor& matrix = tensors.find("matrix")->second;
  EXPECT_EQ(matrix.dtype, kernels::DType::kQ8_0);
  EXPECT_THAT(matrix.shape, ElementsAre(3, 64));
  const std::string expected = PatternBytes(3 * 2 * 34, 1);
  ASSERT_EQ(matrix.size_bytes, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(std::memcmp(matrix.data, expected.data(), expected.size()), 0);
  EXPECT_THAT(tensors.find("vector")->second.shape, ElementsAre(5));
  EXPECT_THAT(tensors.find("cube")->second.shape, ElementsAre(2, 3, 4));
  EXPECT_EQ(std::memcmp(tensors.find("cube")->second.data, PatternBytes(48, 3).data(), 48), 0);
}

TEST_F(GgufTest, EveryTruncationIsRefused) {
  const std::string whole = SmallFile().Build();
  ASSERT_TRUE(StatusOf(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = StatusOf(whole.substr(0, size));
    ASSERT_TRUE(absl::IsInvalidArgument(status)) << size << " bytes: " << status;
    ExpectClear(status, "truncated");
  }
}

TEST_F(GgufTest, EveryHeaderIntegerMayLie) {
  GgufBuilder builder = SmallFile();
  const std::string whole = builder.Build();
  int refused = 0, tried = 0;
  for (const GgufBuilder::Field& field : builder.fields()) {
    for (const uint64_t value : testing::HostileIntegers()) {
      const std::string damaged = WithInteger(whole, field.offset, field.bytes, value);
      const auto file = OpenBytes(damaged);
      ++tried;
      if (file.ok()) {
        ReadEverything(**file);
      } else {
        ++refused;
        ExpectClear(file.status(), absl::StrCat("offset ", field.offset, " set to ", value));
      }
    }
  }
  // Values of plain numbers may be anything; counts, lengths, types and offsets may not.
  EXPECT_GT(refused, tried / 2);
}

TEST_F(GgufTest, RandomByteFlipsNeverCrash) {
  const std::string whole = SmallFile().Build();
  std::mt19937_64 random(20240611);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string damaged = whole;
    const int flips = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < flips; ++i) damaged[random() % damaged.size()] ^= 1 << random() % 8;
    const auto file = OpenBytes(damaged);
    if (file.ok()) {
      ReadEverything(**file);
    } else {
      ++refused;
      ExpectClear(file.status(), absl::StrCat("round ", round));
    }
  }
  EXPECT_GT(refused, 100);
}

struct Lie {
  const char* what;
  GgufBuilder builder;
  const char* error;
};

TEST_F(GgufTest, LiesAreNamed) {
  const auto plain = [] { return GgufBuilder(); };
  const std::string row = PatternBytes(128, 4);
  std::vector<Lie> lies;
  lies.push_back({"duplicate key", plain().AddU32("k", 1).AddU32("k", 1), "\"k\" occurs twice"});
  lies.push_back({"duplicate tensor",
                  plain().AddTensor("t", {32}, 0, row).AddTensor("t", {32}, 0, row),
                  "tensor \"t\" occurs twice"});
  lies.push_back({"no key", plain().AddU32("", 1), "without a key"});
  lies.push_back({"no name", plain().AddTensor("", {32}, 0, row), "without a name"});
  lies.push_back(
      {"long name", plain().AddTensor(std::string(65, 'n'), {32}, 0, row), "longer than 64"});
  lies.push_back({"bool", plain().Add("k", testing::kBool, Raw<uint8_t>(2)), "bool with value 2"});
  lies.push_back({"type", plain().Add("k", 13, Raw<uint32_t>(2)), "unknown value type 13"});
  lies.push_back({"array of arrays",
                  plain().AddArray("k", testing::kArray, 1, std::string(20, '\0')),
                  "array of arrays"});
  lies.push_back({"array type", plain().AddArray("k", 99, 1, std::string(20, '\0')),
                  "unknown element type 99"});
  lies.push_back({"array length", plain().AddArray("k", testing::kU32, uint64_t{1} << 62, row),
                  "runs past the end"});
  lies.push_back(
      {"array of bools", plain().AddArray("k", testing::kBool, 2, "\1\2"), "bool with value 2"});
  lies.push_back({"large unsigned", plain().AddArray("k", testing::kU64, 1, Raw(~uint64_t{0})),
                  "above 2^63 - 1"});
  lies.push_back({"zero alignment", plain().AddU32("general.alignment", 0), "general.alignment"});
  lies.push_back({"odd alignment", plain().AddU32("general.alignment", 48), "general.alignment"});
  lies.push_back(
      {"huge alignment", plain().AddU32("general.alignment", 1u << 31), "general.alignment"});
  lies.push_back(
      {"text alignment", plain().AddString("general.alignment", "32"), "general.alignment"});
  lies.push_back(
      {"five dimensions", plain().AddTensor("t", {1, 1, 1, 1, 32}, 0, row), "5 dimensions"});
  lies.push_back({"no dimensions", plain().AddTensor("t", {}, 0, row), "0 dimensions"});
  lies.push_back({"empty", plain().AddTensor("t", {0, 32}, 0, row), "is empty"});
  lies.push_back({"overflow",
                  plain().AddTensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, row),
                  "too large"});
  lies.push_back({"overflowing bytes", plain().AddTensor("t", {uint64_t{1} << 62}, 0, row),
                  "larger than the rest"});
  lies.push_back(
      {"part of a block", plain().AddTensor("t", {2, 48}, 3, row), "whole blocks of 32 (Q4_1)"});
  lies.push_back({"part of a superblock", plain().AddTensor("t", {2, 128}, 12, row),
                  "whole blocks of 256 (Q4_K)"});
  lies.push_back({"type not supported", plain().AddTensor("t", {256}, 13, std::string(176, 'x')),
                  "tensor \"t\" has type Q5_K"});
  lies.push_back(
      {"type not known", plain().AddTensor("t", {32}, 4711, row), "has type number 4711"});
  for (Lie& lie : lies) {
    // The padding keeps small headers from failing for want of bytes.
    const absl::Status status = StatusOf(lie.builder.Build() + std::string(64, '\0'));
    EXPECT_FALSE(status.ok()) << lie.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(lie.error)) << lie.what;
    ExpectClear(status, lie.what);
  }
  const absl::Status short_data = StatusOf(plain().AddTensor("t", {33}, 0, row).Build());
  EXPECT_THAT(std::string(short_data.message()), HasSubstr("past the end of the file"));
  EXPECT_TRUE(absl::IsUnimplemented(
      StatusOf(plain().AddTensor("t", {256}, 13, std::string(176, 'x')).Build())));
}

TEST_F(GgufTest, OverlapAndMisplacedDataAreNamed) {
  GgufBuilder builder;
  builder.AddTensor("first", {32}, 0, PatternBytes(128, 1))
      .AddTensor("second", {32}, 0, PatternBytes(128, 2));
  const std::string whole = builder.Build();
  ASSERT_TRUE(StatusOf(whole).ok());
  const size_t second_offset = builder.fields().back().offset;
  const auto with_offset = [&](uint64_t offset) {
    const absl::Status status = StatusOf(WithInteger(whole, second_offset, 8, offset));
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("offset ", second_offset)));
    return std::string(status.message());
  };
  EXPECT_THAT(with_offset(0), HasSubstr("overlaps"));
  EXPECT_THAT(with_offset(96), HasSubstr("tensor \"second\" overlaps tensor \"first\""));
  EXPECT_THAT(with_offset(129), HasSubstr("not a multiple of 32"));
  EXPECT_THAT(with_offset(160), HasSubstr("past the end"));
  EXPECT_THAT(with_offset(~uint64_t{0} - 31), HasSubstr("past the end"));
}

TEST_F(GgufTest, CountsAreComparedWithTheFile) {
  const std::string whole = SmallFile().Build();
  for (const uint64_t count : {uint64_t{1} << 20, ~uint64_t{0}}) {
    EXPECT_THAT(std::string(StatusOf(WithInteger(whole, 8, 8, count)).message()),
                HasSubstr(absl::StrCat("offset 8: ", count, " tensors do not fit")));
    EXPECT_THAT(std::string(StatusOf(WithInteger(whole, 16, 8, count)).message()),
                HasSubstr(absl::StrCat("offset 16: ", count, " metadata entries do not fit")));
  }
}

TEST_F(GgufTest, AlignmentIsHonoured) {
  GgufBuilder builder;
  builder.alignment = 128;
  builder.AddU32("general.alignment", 128)
      .AddTensor("first", {3}, 0, PatternBytes(12, 1))
      .AddTensor("second", {3}, 0, PatternBytes(12, 2));
  const auto file = OpenBytes(builder.Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(
      std::memcmp((*file)->tensors().find("second")->second.data, PatternBytes(12, 2).data(), 12),
      0);
}

TEST_F(GgufTest, OtherFilesAreRefused) {
  EXPECT_TRUE(absl::IsNotFound(GgufFile::Open(directory_.path() + "/absent.gguf").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(GgufFile::Open(directory_.path()).status()));
  const std::string pipe = directory_.path() + "/pipe.gguf";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(GgufFile::Open(pipe).status()));
  EXPECT_THAT(std::string(StatusOf("").message()), HasSubstr("offset 0"));
  EXPECT_THAT(std::string(StatusOf(std::string(64, 'x')).message()), HasSubstr("not a GGUF file"));
  const auto with_version = [&](uint32_t version) {
    GgufBuilder builder = SmallFile();
    builder.version = version;
    return std::string(StatusOf(builder.Build()).message());
  };
  EXPECT_THAT(with_version(1), HasSubstr("GGUF version 1 is not supported"));
  EXPECT_THAT(with_version(4), HasSubstr("GGUF version 4 is not supported"));
  EXPECT_THAT(with_version(0x03000000), HasSubstr("big-endian"));
  std::string reversed = SmallFile().Build();
  std::swap(reversed[0], reversed[3]);
  std::swap(reversed[1], reversed[2]);
  EXPECT_THAT(std::string(StatusOf(reversed).message()), HasSubstr("big-endian"));
}

}  // namespace
}  // namespace verbatim::model
