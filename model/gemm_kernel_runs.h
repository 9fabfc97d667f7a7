// The kernels of one matrix over all layers, in few words.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace verbatim::model {

// Runs of equal names over the layers ("onednn*2+bf16*28"); one run needs no length.
template <typename Layer, typename KernelOf>
std::string GemmKernelRuns(const std::vector<Layer>& layers, const KernelOf& kernel_of) {
  std::vector<std::pair<std::string, int>> runs;
  for (const Layer& layer : layers) {
    std::string kernel = kernel_of(layer);
    if (runs.empty() || runs.back().first != kernel) runs.emplace_back(std::move(kernel), 0);
    ++runs.back().second;
  }
  if (runs.size() == 1) return runs[0].first;
  return absl::StrJoin(runs, "+", [](std::string* out, const auto& run) {
    absl::StrAppend(out, run.first, "*", run.second);
  });
}

}  // namespace verbatim::model
