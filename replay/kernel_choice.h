// Which kernel a trace names for a matrix.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "trace/trace.h"

namespace verbatim::replay {

enum class Product { kLayers, kExperts, kLogits };

// Of a product of `rows` rows (kExperts: of one expert that got so many) in one layer; empty where
// the trace names none.
std::string KernelOf(const trace::Trace& trace, const kernels::NumericMode& mode, int64_t rows,
                     Product product, std::string_view matrix, int64_t layer);

}  // namespace verbatim::replay
