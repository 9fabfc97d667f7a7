// Device names, and refusals of what this program cannot open.
#include "kernels/device/open_backend.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::kernels {
namespace {

using ::testing::HasSubstr;

TEST(OpenBackend, ReadsDeviceNames) {
  EXPECT_FALSE(ParseDevice("cpu")->is_cuda);
  EXPECT_TRUE(ParseDevice("cuda")->is_cuda);
  EXPECT_EQ(ParseDevice("cuda")->index, 0);
  EXPECT_EQ(ParseDevice("cuda:7")->index, 7);
  EXPECT_EQ(ParseDevice("cuda:1023")->index, 1023);
  for (const char* wrong : {"", "CPU", "cuda:", "cuda: 1", "cuda:-1", "cuda:+1", "cuda:1x",
                            "cuda:1024", "cuda:99999999999", "cuda1", "gpu"}) {
    const absl::Status status = ParseDevice(wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--device: '" + std::string(wrong) + "'"));
  }
}

TEST(OpenBackend, OpensTheCpuWithItsOptions) {
  const auto backend = OpenBackend({.threads = 1, .isa = cpu::Isa::kScalar});
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->Describe(), "cpu scalar, 1 thread");
  EXPECT_FALSE(OpenBackend({.threads = -1}).ok());
}

TEST(OpenBackend, WithoutCudaAGpuIsRefusedAndNothingElseOpened) {
  for (const char* device : {"cuda", "cuda:1"}) {
    const absl::Status status = OpenBackend({.device = device}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("--device ") + device +
                                                         ": this program was built without CUDA"));
  }
  EXPECT_EQ(OpenBackend({.device = "abacus"}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace verbatim::kernels
