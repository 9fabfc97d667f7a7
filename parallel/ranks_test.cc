// What launchers say of ranks, and the refusals of flags that contradict it.
#include "parallel/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace verbatim::parallel {
namespace {

using testing::HasSubstr;

class RanksTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK",
          "PMI_SIZE", "MPI_LOCALRANKID", "SLURM_LOCALID"}) {
      unsetenv(name);
    }
  }
};

TEST_F(RanksTest, ALauncherIsRecognised) {
  EXPECT_FALSE(FindLaunchedRank().has_value());
  setenv("PMI_RANK", "2", 1);
  setenv("PMI_SIZE", "4", 1);
  ASSERT_TRUE(FindLaunchedRank().has_value());
  EXPECT_EQ(FindLaunchedRank()->rank, 2);
  EXPECT_EQ(FindLaunchedRank()->size, 4);
  EXPECT_EQ(FindLaunchedRank()->local_rank, 2);
  setenv("SLURM_LOCALID", "0", 1);
  EXPECT_EQ(FindLaunchedRank()->local_rank, 0);
  setenv("OMPI_COMM_WORLD_RANK", "5", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "8", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
  EXPECT_EQ(FindLaunchedRank()->rank, 5);
  EXPECT_EQ(FindLaunchedRank()->local_rank, 1);
}

TEST_F(RanksTest, WhatContradictsTheLauncherIsRefused) {
  EXPECT_TRUE(CheckRanks(1).ok());
  const auto refusal = [](int size) { return std::string(CheckRanks(size).message()); };
#ifdef VERBATIM_MPI
  EXPECT_THAT(refusal(2), HasSubstr("--tensor-parallel-size: 2 ranks are started by a launcher"));
#else
  EXPECT_THAT(refusal(2), HasSubstr("--tensor-parallel-size: this program was built without MPI"));
#endif
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  EXPECT_THAT(refusal(1), HasSubstr("1 does not fit the 2 ranks that were launched"));
#ifdef VERBATIM_MPI
  EXPECT_THAT(refusal(4), HasSubstr("4 does not fit the 2 ranks that were launched"));
  EXPECT_TRUE(CheckRanks(2).ok());
#endif
}

}  // namespace
}  // namespace verbatim::parallel
