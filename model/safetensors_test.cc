// safetensors files and indexes, true and lying, and the strict JSON below them.
#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "model/checkpoint_test_files.h"
#include "model/strict_json.h"

namespace verbatim::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::PatternBytes;
using testing::SafetensorsBytes;
using testing::TemporaryDirectory;
using testing::WithInteger;

constexpr char kHeader[] = R"({"__metadata__":{"format":"pt"},)"
                           R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                           R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
                           R"("scalar":{"dtype":"F16","shape":[],"data_offsets":[32,34]},)"
                           R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[34,34]}}  )";
constexpr int kDataBytes = 34;

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(const std::string& bytes) {
    return SafetensorsFile::Open(directory_.Write("m.safetensors", bytes));
  }
  absl::Status StatusOf(const std::string& bytes) { return OpenBytes(bytes).status(); }
  // The error for a header over `data_bytes` bytes of data.
  std::string ErrorOf(const std::string& header, size_t data_bytes) {
    const absl::Status status = StatusOf(SafetensorsBytes(header, PatternBytes(data_bytes, 1)));
    EXPECT_FALSE(status.ok()) << header;
    ExpectClear(status, header);
    return std::string(status.message());
  }
  static void ExpectClear(const absl::Status& status, const std::string& what) {
    if (status.ok()) return;
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status))
        << what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.safetensors: ")) << what;
  }
  static uint64_t ReadEverything(const SafetensorsFile& file) {
    uint64_t sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      for (int64_t i = 0; i < tensor.size_bytes; ++i) {
        sum += std::to_integer<uint8_t>(tensor.data[i]);
      }
    }
    return sum;
  }

  TemporaryDirectory directory_;
};

TEST_F(SafetensorsTest, ReadsTensorsAndMetadata) {
  const std::string data = PatternBytes(kDataBytes, 9);
  const auto file = OpenBytes(SafetensorsBytes(kHeader, data));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& tensors = (*file)->tensors();
  ASSERT_EQ(tensors.size(), 4u);
  const SafetensorsTensor& a = tensors.find("a")->second;
  EXPECT_EQ(a.dtype, kernels::DType::kF32);
  EXPECT_THAT(a.shape, ElementsAre(2, 3));
  EXPECT_EQ(a.size_bytes, 24);
  const SafetensorsTensor& b = tensors.find("b")->second;
  EXPECT_EQ(b.dtype, kernels::DType::kBF16);
  EXPECT_EQ(std::memcmp(b.data, data.data() + 24, 8), 0);
  EXPECT_EQ(tensors.find("scalar")->second.dtype, kernels::DType::kF16);
  EXPECT_TRUE(tensors.find("scalar")->second.shape.empty());
  EXPECT_EQ(tensors.find("none")->second.size_bytes, 0);
  EXPECT_EQ((*file)->metadata().find("format")->second, "pt");
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string whole = SafetensorsBytes(kHeader, PatternBytes(kDataBytes, 9));
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = StatusOf(whole.substr(0, size));
    ASSERT_TRUE(absl::IsInvalidArgument(status)) << size << " bytes: " << status;
    ExpectClear(status, "truncated");
  }
}

TEST_F(SafetensorsTest, HeaderLengthMayLie) {
  const std::string whole = SafetensorsBytes(kHeader, PatternBytes(kDataBytes, 9));
  for (const uint64_t value : testing::HostileIntegers()) {
    const absl::Status status = StatusOf(WithInteger(whole, 0, 8, value));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << value << ": " << status;
    ExpectClear(status, absl::StrCat(value));
  }
}

TEST_F(SafetensorsTest, RandomDamageNeverCrashes) {
  const std::string whole = SafetensorsBytes(kHeader, PatternBytes(kDataBytes, 9));
  std::mt19937_64 random(20240612);
  const std::string alphabet = "0123456789-[]{},:\"eE.\\x";
  for (int round = 0; round < 6000; ++round) {
    std::string damaged = whole;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      // Bit flips find the lexer's edges, characters of JSON the parser's and ours.
      char& byte = damaged[random() % (damaged.size() - kDataBytes)];
      byte = random() % 2 == 0 ? static_cast<char>(byte ^ 1 << random() % 8)
                               : alphabet[random() % alphabet.size()];
    }
    const auto file = OpenBytes(damaged);
    if (file.ok()) {
      ReadEverything(**file);
    } else {
      ExpectClear(file.status(), absl::StrCat("round ", round));
    }
  }
}

// One F32 tensor of shape [2] with one of its fields replaced.
std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat(R"({"t":{"dtype":)", dtype, R"(,"shape":)", shape, R"(,"data_offsets":)",
                      offsets, "}}");
}

TEST_F(SafetensorsTest, LiesAreNamed) {
  const std::string f32 = "\"F32\"";
  ASSERT_TRUE(StatusOf(SafetensorsBytes(Entry(f32, "[2]", "[0,8]"), PatternBytes(8, 1))).ok());
  EXPECT_THAT(ErrorOf(Entry("\"F64\"", "[1]", "[0,8]"), 8), HasSubstr("dtype \"F64\""));
  EXPECT_THAT(ErrorOf(Entry("7", "[1]", "[0,8]"), 8), HasSubstr("dtype"));
  for (const char* shape :
       {"[-2]", "[2.0]", "[null]", "2", "[\"2\"]", "[1e3]", "null", "[1,1,1,1,1,1,1,1,2]"}) {
    EXPECT_THAT(ErrorOf(Entry(f32, shape, "[0,8]"), 8), HasSubstr("shape")) << shape;
  }
  for (const char* shape : {"[2305843009213693953]", "[4294967296,4294967296]",
                            "[18446744073709551615,2]", "[9223372036854775808]"}) {
    EXPECT_THAT(ErrorOf(Entry(f32, shape, "[0,8]"), 8), HasSubstr("too large")) << shape;
  }
  EXPECT_THAT(ErrorOf(Entry(f32, "[3]", "[0,8]"), 8), HasSubstr("need 12"));
  EXPECT_THAT(ErrorOf(Entry(f32, "[2305843009213693952]", "[0,8]"), 8), HasSubstr("shape need"));
  for (const char* offsets : {"[8,0]", "[0,9]", "[0,18446744073709551615]"}) {
    EXPECT_THAT(ErrorOf(Entry(f32, "[2]", offsets), 8), HasSubstr("do not lie in")) << offsets;
  }
  for (const char* offsets : {"[0]", "[0,8,9]", "[-1,7]", "[0.0,8.0]", "8", "{}", "[0,null]"}) {
    EXPECT_THAT(ErrorOf(Entry(f32, "[2]", offsets), 8), HasSubstr("two offsets")) << offsets;
  }
  EXPECT_THAT(ErrorOf(Entry(f32, "[1]", "[4,8]"), 8), HasSubstr("hole of 4 bytes"));
  EXPECT_THAT(ErrorOf(Entry(f32, "[1]", "[0,4]"), 8), HasSubstr("end at data offset 4"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                      R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                      8),
              HasSubstr("\"b\": overlaps"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
                      16),
              HasSubstr("\"a\" occurs twice"));
  EXPECT_THAT(ErrorOf(R"({"a":3})", 0), HasSubstr("not an object"));
  EXPECT_THAT(ErrorOf(R"({"a":{}})", 0), HasSubstr("dtype is missing"));
  EXPECT_THAT(ErrorOf(R"({"__metadata__":3})", 0), HasSubstr("__metadata__ is not an object"));
  EXPECT_THAT(ErrorOf(R"({"__metadata__":{"k":3}})", 0), HasSubstr("\"k\" is not a string"));
  EXPECT_THAT(ErrorOf("[]", 0), HasSubstr("offset 8: header does not begin"));
  EXPECT_THAT(ErrorOf("{\"a\":tru}", 0), HasSubstr("offset 16: malformed JSON"));
  EXPECT_THAT(ErrorOf("{\"a\":1e999}", 0), HasSubstr("out of range"));
  EXPECT_THAT(ErrorOf("{\"\xff\":1}", 0), HasSubstr("malformed JSON"));
  EXPECT_THAT(ErrorOf("{} {}", 0), HasSubstr("malformed JSON"));
  EXPECT_THAT(ErrorOf("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 0),
              HasSubstr("levels deep"));
}

TEST_F(SafetensorsTest, IndexNamesPlainFiles) {
  const auto index_of = [&](const std::string& json) {
    return ReadSafetensorsIndex(directory_.Write("i.json", json));
  };
  const auto good = index_of(R"({"metadata":{"total_size":1},"weight_map":{"a":"x.safetensors"}})");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->at("a"), "x.safetensors");
  for (const char* file :
       {"../x.safetensors", "/etc/x.safetensors", "d/x.safetensors", "..", "", ".safetensors",
        ".x.safetensors", "x.bin", R"(d\\x.safetensors)", R"(x\u0000.safetensors)"}) {
    const auto bad = index_of(absl::StrCat(R"({"weight_map":{"a":")", file, "\"}}"));
    EXPECT_TRUE(absl::IsInvalidArgument(bad.status())) << file;
    EXPECT_THAT(std::string(bad.status().message()), HasSubstr("weight_map \"a\"")) << file;
  }
  for (const char* json :
       {"{}", "[]", R"({"weight_map":[]})", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(index_of(json).status())) << json;
  }
  EXPECT_TRUE(absl::IsNotFound(ReadSafetensorsIndex(directory_.path() + "/absent").status()));
}

}  // namespace
}  // namespace verbatim::model
