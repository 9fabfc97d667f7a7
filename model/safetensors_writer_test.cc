// What the writer writes, the reader reads; and what the writer refuses.
#include "model/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/checkpoint_test_files.h"
#include "model/safetensors.h"

namespace verbatim::model {
namespace {

using kernels::DType;
using ::testing::HasSubstr;
using testing::PatternBytes;

class SafetensorsWriterTest : public ::testing::Test {
 protected:
  void SetUp() override { path_ = directory_.path() + "/model.safetensors"; }

  // Writes the entries with pattern bytes; returns those bytes by entry.
  std::vector<std::string> WriteAll(const std::vector<SafetensorsEntry>& entries) {
    std::vector<std::string> bytes;
    auto writer = SafetensorsWriter::Create(path_, entries, {{"format", "pt"}});
    EXPECT_TRUE(writer.ok()) << writer.status();
    uint32_t seed = 1;
    for (const SafetensorsEntry& entry : entries) {
      int64_t size = kernels::InfoOf(entry.dtype).block_bytes;
      for (const int64_t extent : entry.shape) size *= extent;
      bytes.push_back(PatternBytes(static_cast<size_t>(size), seed++));
      const absl::Status status = (*writer)->Append(entry.name, bytes.back().data(), size);
      EXPECT_TRUE(status.ok()) << status;
    }
    const int64_t file_bytes = (*writer)->file_bytes();
    const absl::Status finished = (*writer)->Finish();
    EXPECT_TRUE(finished.ok()) << finished;
    EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(path_)), file_bytes);
    return bytes;
  }

  testing::TemporaryDirectory directory_;
  std::string path_;
};

TEST_F(SafetensorsWriterTest, TheReaderReadsWhatWasWritten) {
  // Not in the order of their names; one scalar, one without elements.
  const std::vector<SafetensorsEntry> entries = {{"z.weight", DType::kBF16, {3, 5}},
                                                 {"a.\"quoted\"", DType::kF32, {7}},
                                                 {"scalar", DType::kF16, {}},
                                                 {"empty", DType::kF32, {4, 0}},
                                                 {"m", DType::kBF16, {2, 3, 4}}};
  const std::vector<std::string> bytes = WriteAll(entries);
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), entries.size());
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto it = (*file)->tensors().find(entries[i].name);
    ASSERT_NE(it, (*file)->tensors().end()) << entries[i].name;
    EXPECT_EQ(it->second.dtype, entries[i].dtype);
    EXPECT_EQ(it->second.shape, entries[i].shape);
    ASSERT_EQ(it->second.size_bytes, static_cast<int64_t>(bytes[i].size()));
    EXPECT_EQ(std::memcmp(it->second.data, bytes[i].data(), bytes[i].size()), 0) << i;
  }
}

TEST_F(SafetensorsWriterTest, TensorsBeginAtAMultipleOfEightBytes) {
  for (const char* name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"}) {
    WriteAll({{name, DType::kF32, {2}}});
    std::ifstream in(path_, std::ios::binary);
    uint64_t header_bytes = 0;
    in.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
    EXPECT_EQ(header_bytes % 8, 0u) << name;
    EXPECT_EQ(std::filesystem::file_size(path_), 8 + header_bytes + 8);
  }
}

TEST_F(SafetensorsWriterTest, RefusesWhatTheFormatCannotHold) {
  const auto create = [&](std::vector<SafetensorsEntry> entries) {
    return std::string(SafetensorsWriter::Create(path_, std::move(entries), {}).status().message());
  };
  EXPECT_THAT(create({{"t", DType::kQ4_1, {32, 32}}}), HasSubstr("no dtype Q4_1"));
  EXPECT_THAT(create({{"t", DType::kF32, {-1}}}), HasSubstr("impossible size -1"));
  EXPECT_THAT(create({{"t", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}),
              HasSubstr("impossible size"));
  EXPECT_THAT(create({{"t", DType::kF32, {1}}, {"t", DType::kF32, {1}}}), HasSubstr("taken"));
  EXPECT_THAT(create({{"__metadata__", DType::kF32, {1}}}), HasSubstr("taken"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SafetensorsWriterTest, TensorsComeInOrderAndWhole) {
  auto writer = SafetensorsWriter::Create(
      path_, {{"first", DType::kF32, {1}}, {"second", DType::kF32, {1}}}, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const float value = 1;
  EXPECT_THAT(std::string((*writer)->Append("second", &value, 4).message()),
              HasSubstr("\"first\" with 4 bytes is expected"));
  EXPECT_THAT(std::string((*writer)->Append("first", &value, 3).message()),
              HasSubstr("\"first\" with 4 bytes is expected"));
  EXPECT_TRUE((*writer)->Append("first", &value, 4).ok());
  EXPECT_EQ((*writer)->Finish().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*writer)->Append("second", &value, 4).ok());
  EXPECT_THAT(std::string((*writer)->Append("third", &value, 4).message()),
              HasSubstr("no further tensor is expected"));
  EXPECT_TRUE((*writer)->Finish().ok());
}

TEST_F(SafetensorsWriterTest, NamesTheFileThatCannotBeWritten) {
  const std::string missing = directory_.path() + "/no/model.safetensors";
  const auto writer = SafetensorsWriter::Create(missing, {{"t", DType::kF32, {1}}}, {});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr(missing));
}

TEST_F(SafetensorsWriterTest, AFullDiskIsNamed) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  auto writer = SafetensorsWriter::Create("/dev/full", {{"t", DType::kF32, {1 << 20}}}, {});
  absl::Status status = writer.status();
  const std::vector<float> values(1 << 20);
  if (status.ok()) {
    status = (*writer)->Append("t", values.data(), static_cast<int64_t>(values.size()) * 4);
    if (status.ok()) status = (*writer)->Finish();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

}  // namespace
}  // namespace verbatim::model
