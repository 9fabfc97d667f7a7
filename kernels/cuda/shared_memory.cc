// Comparing kernels' needs with the device.
#include "kernels/cuda/shared_memory.h"

#include <initializer_list>

#include "absl/strings/str_cat.h"

namespace verbatim::kernels::cuda {
namespace {

SharedNeeds Together(std::initializer_list<SharedNeeds> lists) {
  SharedNeeds all;
  for (const SharedNeeds& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace

SharedNeeds CommonNeeds() {
  return Together({AttentionNeeds(), AttentionMmaSplitNeeds(/*wide_heads=*/false),
                   AttentionMmaWalkNeeds(/*wide_heads=*/false), GemmPinnedNeeds(),
                   GemmPortableNeeds(), GroupedGemmPinnedNeeds(), GroupedGemmPortableNeeds()});
}

SharedNeeds WideHeadNeeds() {
  return Together(
      {AttentionMmaSplitNeeds(/*wide_heads=*/true), AttentionMmaWalkNeeds(/*wide_heads=*/true)});
}

absl::Status AllowSharedMemory(const runtime::DeviceInfo& device, const SharedNeeds& needs) {
  for (const SharedNeed& need : needs) {
    if (need.bytes <= device.max_shared_bytes) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: the kernel ", need.kernel, " needs ", need.bytes,
                     " bytes of shared memory a block; ", device.name, ", compute capability ",
                     device.major, ".", device.minor, ", has ", device.max_shared_bytes));
  }
  for (const SharedNeed& need : needs) {
    if (need.bytes <= runtime::kSharedBytesUnasked) continue;
    absl::Status status = runtime::AllowSharedBytes(need.function, need.bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cuda
