// Comparing kernels' needs with the device.
#include "kernels/cuda/shared_memory.h"

#include "absl/strings/str_cat.h"

namespace verbatim::kernels::cuda {

SharedNeeds CommonNeeds() {
  SharedNeeds all;
  for (const SharedNeeds& needs :
       {AttentionNeeds(), AttentionMmaSplitNeeds(), AttentionMmaWalkNeeds(), GemmPinnedNeeds(),
        GemmPortableNeeds(), GroupedGemmPinnedNeeds(), GroupedGemmPortableNeeds()}) {
    all.insert(all.end(), needs.begin(), needs.end());
  }
  return all;
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
