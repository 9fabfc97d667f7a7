// What every CPU operation gets besides its parameters.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"

namespace verbatim::kernels::cpu {

struct CpuContext {
  ThreadPool* pool;
  Isa isa;
};

}  // namespace verbatim::kernels::cpu
