// Chooses the kernel of a product, and gives each thread its panels.
#include "kernels/cpu/gemm_products.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"

namespace verbatim::kernels::cpu {
namespace {

// The rules below are what bench/gemm_bench.cc showed on AVX-512 (Zen 5, two cores, 46 GB/s), and
// for AVX2 on the same processor. Splitting K between threads was never needed: even 576 outputs
// are 18 panels, more than the threads of the machines this backend is for, and a panel streams all
// of its k.

// Factoring the scales out saves a multiply-add a weight, and costs a few a group and token.
bool FactoringPays(Isa isa, DType dtype, int64_t tokens) {
  if (InfoOf(dtype).block_elements == 1) return false;
  if (isa != Isa::kAvx512) return tokens <= 2;
  // GCC 12 keeps sums of the two-token Q8_0 kernel in memory.
  return tokens <= 4 && !(dtype == DType::kQ8_0 && tokens == 2);
}

// From how many tokens on oneDNN's prepacked copy is faster than the stored bits.
int64_t LibraryMinTokens(Isa isa, DType dtype, ActivationType activations) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  if (isa == Isa::kScalar) return kNever;
  if (activations == ActivationType::kF32) {
    // On AVX-512 widening in registers keeps up with fp32 copies at every size (0.97 to 3.5 times
    // their speed), at no second copy.
    return isa == Isa::kAvx512 ? kNever : 64;
  }
  if (!HasBf16Kernels()) return kNever;  // oneDNN would emulate bf16
  if (isa != Isa::kAvx512) return 8;
  switch (dtype) {
    case DType::kF32:
      return 1;  // half the bytes to read
    case DType::kF16:
      return 8;
    case DType::kBF16:
      return 192;
    default:
      return 128;
  }
}

// Below this many elements, making them on every thread costs less than a meeting of all threads.
constexpr int64_t kShareRows = 1 << 16;

// After which chunk how many partial sums are joined.
const uint8_t* TreeJoins(int64_t tokens, const PackedMatrix& weight) {
#ifdef VERBATIM_FAULT_GEMM_ORDER
  // Only in builds that show that the conformance suite can fail: a large batch is summed from left
  // to right.
  static const std::vector<uint8_t> left_to_right = [] {
    std::vector<uint8_t> joins(4096, 1);
    joins[0] = 0;
    return joins;
  }();
  if (tokens > 8) return left_to_right.data();
#else
  (void)tokens;
#endif
  return weight.tree_joins().data();
}

// The same for the shards of PINNED: -1 where a shard goes on.
const int8_t* ShardJoins(int64_t tokens, const PackedMatrix& weight) {
#ifdef VERBATIM_FAULT_SHARD_JOINS
  // Only in builds that show that the conformance suite can fail: the shards of more than 2 rows
  // are joined from left to right.
  if (tokens > 2) {
    thread_local std::vector<int8_t> left_to_right;
    left_to_right.assign(weight.shard_joins().begin(), weight.shard_joins().end());
    bool first = true;
    for (int8_t& joins : left_to_right) {
      if (joins < 0) continue;
      joins = first ? 0 : 1;
      first = false;
    }
    return left_to_right.data();
  }
#else
  (void)tokens;
#endif
  return weight.shard_joins().data();
}

// What a panel of the product costs, in multiply-adds of one core: its rows, widening the weights
// once for every tile of rows, and reading them (a byte takes about as long as two of them).
int64_t PanelCost(const PanelProduct& product) {
  const PanelSegment& segment = product.weight->segments()[0];
  const int64_t decodings = (product.x.count + 11) / 12;
  return kPanelLanes * product.weight->cols() * (product.x.count + decodings) +
         2 * segment.panel_bytes;
}

// What the threads of a call share. Kept between calls: steps allocate nothing once the largest has
// been seen.
struct Plan {
  std::vector<InputRows> rows;      // by product
  std::vector<int64_t> unit_begin;  // [products + 1]: the first unit of each product's rows
  std::vector<int64_t> cost_begin;  // [products + 1]
};

// 64-byte aligned memory that grows.
class Arena {
 public:
  std::byte* Get(size_t size_bytes) {
    if (bytes_.size() < size_bytes + 63) bytes_.resize(size_bytes + 63);
    std::byte* p = bytes_.data();
    return p + -reinterpret_cast<uintptr_t>(p) % 64;
  }

 private:
  std::vector<std::byte> bytes_;
};

using PanelKernel = void (*)(const PanelRun&);

PanelKernel KernelOf(const GemmKernels& kernels, GemmPath path) {
  if (path == GemmPath::kFactored) return kernels.factored;
#if defined(__x86_64__)
  if (path == GemmPath::kBf16) return isa_avx512bf16::Bf16Gemm;
#endif
  return kernels.tree;
}

// Panels [range.begin, range.end) of a product.
void RunPanels(const GemmKernels& kernels, const PanelProduct& product, const InputRows& rows,
               ThreadPool::Range range) {
  const PackedMatrix& weight = *product.weight;
  const PanelKernel kernel = KernelOf(kernels, product.path);
  for (const PanelSegment& segment : weight.segments()) {
    const int64_t begin = std::max(range.begin - segment.panel_begin, int64_t{0});
    const int64_t end = std::min(range.end - segment.panel_begin, segment.panels);
    if (begin >= end) continue;
    const int64_t column = segment.row_begin + begin * kPanelLanes;
    PanelRun run;
    rows.Describe(run);
    run.dtype = segment.dtype;
    run.panels = segment.data + begin * segment.panel_bytes;
    run.panel_bytes = segment.panel_bytes;
    run.panel_count = end - begin;
    run.columns = std::min(segment.rows, end * kPanelLanes) - begin * kPanelLanes;
    run.y = product.y + column;
    run.y_stride = product.y_stride;
    run.bias = product.bias == nullptr ? nullptr : product.bias + column;
    run.residual = product.residual == nullptr ? nullptr : product.residual + column;
    run.joins = TreeJoins(run.tokens, weight);
    run.shard_joins = ShardJoins(run.tokens, weight);
    kernel(run);
    if (!product.round_output) continue;
    for (int64_t t = 0; t < run.tokens; ++t) {
      kernels.round_in_place(run.y + t * run.y_stride, run.columns);
    }
  }
}

// Thread `thread`'s part of the work of making all rows.
void FillPart(const GemmKernels& kernels, const Plan& plan, int thread, int threads) {
  const ThreadPool::Range part = ThreadPool::PartOf(plan.unit_begin.back(), 1, thread, threads);
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const int64_t begin = std::max(part.begin, plan.unit_begin[i]);
    const int64_t end = std::min(part.end, plan.unit_begin[i + 1]);
    if (begin < end) {
      plan.rows[i].Fill(kernels, begin - plan.unit_begin[i], end - plan.unit_begin[i]);
    }
  }
}

}  // namespace

GemmPath ChoosePath(const CpuContext& context, const NumericMode& mode, const PackedMatrix& weight,
                    int64_t tokens) {
  if (mode.policy == Policy::kPortable) return GemmPath::kTree;
  if (mode.policy == Policy::kPinned) {
    // Weights that dot products of bf16 would round are multiplied as in PORTABLE.
    const bool exact = std::all_of(
        weight.segments().begin(), weight.segments().end(), [](const PanelSegment& segment) {
          return segment.dtype == DType::kF32 || segment.dtype == DType::kF16;
        });
    return UsesBf16Leaves(context.isa) && !exact ? GemmPath::kBf16 : GemmPath::kTree;
  }
  // The segment with the most panels decides for all.
  const PanelSegment* main = &weight.segments()[0];
  for (const PanelSegment& segment : weight.segments()) {
    if (segment.panels > main->panels) main = &segment;
  }
  const ActivationType activations = mode.activations;
  const GemmOptions& options = weight.gemm_options();
  const int64_t library_tokens = options.library_min_tokens > 0
                                     ? options.library_min_tokens
                                     : LibraryMinTokens(context.isa, main->dtype, activations);
  if (options.library_copies != GemmOptions::LibraryCopies::kNever && tokens >= library_tokens) {
    return GemmPath::kLibrary;
  }
  if (activations == ActivationType::kBF16 && UsesBf16Leaves(context.isa)) {
    return GemmPath::kBf16;
  }
  return FactoringPays(context.isa, main->dtype, tokens) ? GemmPath::kFactored : GemmPath::kTree;
}

void RunProducts(const CpuContext& context, absl::Span<const PanelProduct> products) {
  const GemmKernels& kernels = KernelsOf(context.isa);
  const int threads = context.pool->threads();
  thread_local Plan plan_of_caller;
  thread_local Arena arena_of_caller;
  Plan& plan = plan_of_caller;
  plan.rows.clear();
  plan.unit_begin.assign(1, 0);
  plan.cost_begin.assign(1, 0);
  int64_t elements = 0;
  size_t size_bytes = 0;
  for (const PanelProduct& product : products) {
    plan.rows.emplace_back(product.x, *product.weight, product.path == GemmPath::kBf16);
    const InputRows& rows = plan.rows.back();
    elements += rows.elements();
    size_bytes += rows.size_bytes();
    plan.unit_begin.push_back(plan.unit_begin.back() + rows.units());
    plan.cost_begin.push_back(plan.cost_begin.back() +
                              PanelCost(product) * product.weight->panels());
  }
  const bool shared = threads > 1 && elements >= kShareRows;
  if (shared) {
    std::byte* memory = arena_of_caller.Get(size_bytes);
    for (InputRows& rows : plan.rows) {
      rows.SetMemory(memory);
      memory += rows.size_bytes();
    }
    context.pool->Run([&](int thread) { FillPart(kernels, plan, thread, threads); });
  }
  const int64_t total = plan.cost_begin.back();
  const auto cut = [&](int thread) {
    return total / threads * thread + total % threads * thread / threads;
  };
  context.pool->Run([&](int thread) {
    thread_local Arena arena;
    const int64_t from = cut(thread), to = cut(thread + 1);
    const size_t first = std::upper_bound(plan.cost_begin.begin(), plan.cost_begin.end(), from) -
                         plan.cost_begin.begin() - 1;
    for (size_t i = first; i < products.size() && plan.cost_begin[i] < to; ++i) {
      const int64_t cost = PanelCost(products[i]);
      const auto panel_at = [&](int64_t at) {
        return std::clamp((at - plan.cost_begin[i]) / cost, int64_t{0},
                          products[i].weight->panels());
      };
      const ThreadPool::Range panels = {panel_at(from), panel_at(to)};
      if (panels.begin >= panels.end) continue;
      InputRows rows = plan.rows[i];
      if (!shared && rows.units() > 0) {
        rows.SetMemory(arena.Get(rows.size_bytes()));
        rows.Fill(kernels, 0, rows.units());
      }
      RunPanels(kernels, products[i], rows, panels);
    }
  });
}

}  // namespace verbatim::kernels::cpu
