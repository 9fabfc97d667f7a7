// Which form of the pinned product runs for many tokens: by warps (mma.sync, gemm_pinned.cuh),
// which every device has and which defines the bits, or by warpgroups (wgmma,
// gemm_pinned_wgmma.cuh) where the device has them and gave the same bits.
//
// How either instruction sums its products is not documented. So nothing is supposed: both forms
// compute seeded data of many magnitudes when the backend starts, and the real weights of every
// shape when they are loaded, and one bit that differs ends the use of wgmma.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda {

// What Describe says of a device that could have wgmma and does not use it begins with this.
inline constexpr char kPinnedByMma[] = "pinned products by mma.sync alone";

class PinnedGemmForm {
 public:
  // Products of fewer tokens are computed by warps.
  static constexpr int64_t kLeastTokens = 128;
  // Products of experts with so many places each, on average, or fewer are computed by warps. By an
  // H200's published rates, of memory and of multiplication: until then weights take longer from
  // memory than either form takes for their products, and from there on an expert's tile, however
  // full, takes wgmma about as long as its weights take. Not measured.
  static constexpr int64_t kFewPlacesEach = 64;

  // `wgmma`: whether warpgroups may be used at all; VERBATIM_PINNED_GEMM=mma in the environment
  // forbids it too. Compares the forms on shapes of every kind. The
  // uploader's stream is the one that Launch is called with.
  static absl::StatusOr<std::unique_ptr<PinnedGemmForm>> Create(bool wgmma,
                                                                const runtime::DeviceInfo& device,
                                                                Uploader& uploader, Stream stream);

  // A matrix that has been loaded with these options: compares the forms of the products that it is
  // for on its weights, the first time that its shape is seen.
  absl::Status Check(const PackedPart& part, const LoadMatrixOptions& options, Uploader& uploader);

  // Whether warpgroups are used at all.
  bool IsByWgmma() const { return why_not_.empty(); }
  // Whether this product of experts would be.
  bool IsByWgmma(const GroupedGemmArgs& args) const;
  // The pinned product, by the form for so many tokens or places.
  int Launch(const GemmPinnedArgs& args, Stream stream) const;
  int Launch(const GroupedGemmArgs& args, Stream stream) const;

  // What becomes of many tokens; empty on devices for which there is no second form.
  std::string Describe() const;
  // The status with the reason of a device's failure, when a kernel of this form left one.
  absl::Status Explained(const absl::Status& status) const;

 private:
  PinnedGemmForm(const runtime::DeviceInfo& device, Stream stream)
      : device_(device), stream_(stream) {}
  // Whether both forms give the same bits for random tokens; with what tiles they do not.
  absl::StatusOr<std::string> Difference(const PackedPart& part, const LoadMatrixOptions& options,
                                         Uploader& uploader) const;
  // Compares on random weights of several shapes.
  absl::Status CheckShapes(Uploader& uploader);
  absl::StatusOr<bool> HasCode() const;
  uint32_t* stuck() const { return static_cast<uint32_t*>(stuck_->data()); }

  const runtime::DeviceInfo device_;
  const Stream stream_;
  std::unique_ptr<PinnedBuffer> stuck_;
  std::string why_not_;  // wgmma is not used; empty: it is
  // Rows, columns, depth, whether for experts.
  std::set<std::tuple<int64_t, int64_t, int, bool>> checked_;
};

}  // namespace verbatim::kernels::cuda
