// The emulated GPU as a program's CUDA device, with little working memory.
//
// VERBATIM_SIMT_FAULT plants a fault for tests of whole processes: "device=N" (the device fails
// after N operations), "allocation=N" (no memory after N allocations), "none" (no device) or
// "no library" (of matrix products). VERBATIM_SIMT_DEVICES is how many devices there are; the
// processes of ranks see the same.
#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device/open_backend.h"
#include "parallel/device_communicator.h"
#include "parallel/device_ranks.h"
#include "simt/faults.h"
#include "simt/host_link.h"

namespace verbatim::kernels {
namespace {

void PlantFault() {
  const char* text = std::getenv("VERBATIM_SIMT_DEVICES");
  int devices = 1;
  if (text != nullptr && absl::SimpleAtoi(text, &devices)) {
    cuda::simt_faults::SetDeviceCount(devices);
  }
  text = std::getenv("VERBATIM_SIMT_FAULT");
  if (text == nullptr) return;
  const std::string fault = text;
  int64_t count = 0;
  const size_t equals = fault.find('=');
  if (equals != std::string::npos && !absl::SimpleAtoi(fault.substr(equals + 1), &count)) return;
  if (fault == "no library") cuda::simt_faults::SetLibraryPresent(false);
  if (fault == "none") cuda::simt_faults::SetDeviceCount(0);
  if (absl::StartsWith(fault, "allocation=")) cuda::simt_faults::FailAllocationsAfter(count);
  if (absl::StartsWith(fault, "device=")) {
    cuda::simt_faults::FailDeviceAfter(count, absl::InternalError("cuda: an illegal address"));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaDevice(int index, const BackendOptions& options) {
  PlantFault();
  return cuda::CudaBackend::Create({.device = index,
                                    .matrix_units = options.matrix_units,
                                    .wgmma = options.wgmma,
                                    .library_workspace_bytes = size_t{1} << 16,
                                    .weight_block_bytes = size_t{1} << 20,
                                    .workspace_bytes = size_t{4} << 20,
                                    .table_bytes = size_t{1} << 20,
                                    .expert_table_bytes = size_t{1} << 16,
                                    .staging_slot_bytes = size_t{1} << 20,
                                    .sampling_scratch_bytes = size_t{4} << 20,
                                    .sampling_list_bytes = size_t{1} << 20,
                                    .max_graphs = options.enforce_eager ? size_t{0} : 64});
}

}  // namespace verbatim::kernels

namespace verbatim::parallel {

absl::StatusOr<std::unique_ptr<Communicator>> OnDevice(Communicator& host,
                                                       kernels::Backend& backend) {
  auto ranks = MakeDeviceCommunicator(host, backend, std::make_unique<HostLink>(host));
  if (absl::Status tried = TryExchanges(*ranks, backend); !tried.ok()) return tried;
  return ranks;
}

}  // namespace verbatim::parallel
