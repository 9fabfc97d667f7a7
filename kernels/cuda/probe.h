// For which device the kernels in this program were compiled.
#pragma once

namespace verbatim::kernels::cuda {

struct CodeVersion {
  int binary = 0;  // architecture of the machine code that will run: 90 is 9.0
  int ptx = 0;     // of the PTX it was made from
};
// 0, or a cudaError_t: cudaErrorNoKernelImageForDevice where neither machine code nor PTX fits the
// current device.
int ProbeCode(CodeVersion* version);

}  // namespace verbatim::kernels::cuda
