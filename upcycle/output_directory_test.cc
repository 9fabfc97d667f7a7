// A folder that appears whole, and never in place of something else.
#include "upcycle/output_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "evaluate/token_windows.h"
#include "model/checkpoint_test_files.h"

namespace verbatim::upcycle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class OutputDirectoryTest : public ::testing::Test {
 protected:
  absl::StatusOr<OutputDirectory> Create(bool overwrite) {
    return OutputDirectory::Create(path_, overwrite, {"a.json", "b"});
  }
  // Everything in the folder around `path_`.
  size_t Entries() const {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator());
  }

  model::testing::TemporaryDirectory folder_;
  const std::string path_ = folder_.path() + "/model";
};

TEST_F(OutputDirectoryTest, AppearsOnlyWhenCommitted) {
  {
    auto output = Create(false);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_TRUE(output->Write("a.json", "{}").ok());
    EXPECT_FALSE(fs::exists(path_));
  }
  EXPECT_EQ(Entries(), 0u);  // not committed: nothing is left
  auto output = Create(false);
  ASSERT_TRUE(output.ok());
  ASSERT_TRUE(output->Write("a.json", "{}").ok());
  ASSERT_TRUE(output->Commit().ok());
  EXPECT_EQ(*evaluate::ReadText(path_ + "/a.json"), "{}");
  EXPECT_EQ(Entries(), 1u);
}

TEST_F(OutputDirectoryTest, ReplacesAModelOnlyWhenTold) {
  fs::create_directory(path_);
  EXPECT_TRUE(Create(false).ok());  // an empty folder is no loss
  std::ofstream(path_ + "/b") << "old";
  EXPECT_EQ(Create(false).status().code(), absl::StatusCode::kAlreadyExists);
  auto output = Create(true);
  ASSERT_TRUE(output.ok()) << output.status();
  ASSERT_TRUE(output->Write("a.json", "new").ok());
  ASSERT_TRUE(output->Commit().ok());
  EXPECT_FALSE(fs::exists(path_ + "/b"));
  EXPECT_EQ(*evaluate::ReadText(path_ + "/a.json"), "new");
}

TEST_F(OutputDirectoryTest, NeverReplacesSomethingElse) {
  fs::create_directory(path_);
  std::ofstream(path_ + "/thesis.tex") << "years";
  const auto refused = Create(true);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("thesis.tex"));
  fs::remove(path_ + "/thesis.tex");
  fs::create_directory(path_ + "/b");  // a folder of a known name is not a file of it
  EXPECT_FALSE(Create(true).ok());
  fs::remove_all(path_);
  std::ofstream(path_) << "a file";
  EXPECT_FALSE(Create(true).ok());
  EXPECT_TRUE(fs::exists(path_));
}

TEST_F(OutputDirectoryTest, WhatAppearedMeanwhileStays) {
  auto output = Create(false);
  ASSERT_TRUE(output.ok());
  fs::create_directory(path_);
  std::ofstream(path_ + "/other") << "x";
  EXPECT_FALSE(output->Commit().ok());
  EXPECT_TRUE(fs::exists(path_ + "/other"));
}

TEST_F(OutputDirectoryTest, TakesTheRemainsOfAKilledRunAway) {
  fs::create_directory(path_ + ".partial");
  std::ofstream(path_ + ".partial/b") << "half";
  auto output = Create(false);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_FALSE(fs::exists(output->PathOf("b")));
}

TEST_F(OutputDirectoryTest, NamesWhatCannotBeMade) {
  std::ofstream(folder_.path() + "/file") << "x";
  const auto output = OutputDirectory::Create(folder_.path() + "/file/model", false, {});
  EXPECT_EQ(output.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(output.status().message()), HasSubstr("/file/model.partial"));
}

}  // namespace
}  // namespace verbatim::upcycle
