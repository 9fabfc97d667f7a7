// Ranks that are threads of one process, for tests: the same promises without MPI.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace verbatim::parallel {

// One communicator a rank. A rank whose communicator is destroyed before rank 0 has closed counts
// as failed. AllReduceSum adds in rank order.
std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int size);

}  // namespace verbatim::parallel
