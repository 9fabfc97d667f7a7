// Ranks that exchange memory of their devices, and say everything else over the host.
//
// A device that waits for the message of a rank that is gone waits for ever, and with it whoever
// waits for the device. A thread therefore watches over the link: when a rank has failed, or the
// link itself, it ends what is on the streams. What a step then computed is worthless although no
// operation failed; failure() tells.
#pragma once

#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/device_link.h"

namespace verbatim::parallel {

// `host` must outlive the result, `backend` its Close, which also drops what the backend has
// recorded. Where nobody closes it, whoever recorded exchanges has dropped them before it ends
// (kernels::Backend::ForgetDecode), and `backend` may be gone. A rank other than 0 must end it
// before its backend, which might wait for messages that do not come.
std::unique_ptr<Communicator> MakeDeviceCommunicator(Communicator& host, kernels::Backend& backend,
                                                     std::unique_ptr<DeviceLink> link);

// Every rank exchanges a number with every other and joins a sum: what a link connects or allocates
// when it is first used is there afterwards. All ranks at once. INTERNAL: something else arrived.
absl::Status TryExchanges(Communicator& communicator, kernels::Backend& backend);

// The rows of blocks, one message each: both sides cut alike, whatever their strides.
std::vector<Message> RowsOf(absl::Span<const Block> blocks);

}  // namespace verbatim::parallel
