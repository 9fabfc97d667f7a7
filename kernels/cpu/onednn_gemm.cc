// One oneDNN matmul per slice and pool thread, with primitives cached by shape.
#include "kernels/cpu/onednn_gemm.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dnnl.hpp"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::kernels::cpu {
namespace {

using dnnl::memory;

// Slices begin at multiples of this, oneDNN's widest block of outputs.
constexpr int64_t kSliceGrain = 64;
// Primitives kept per slice: a chunk size, the decode batches between and their tails.
constexpr size_t kMaxPrimitives = 128;

struct Shape {
  int64_t tokens, x_stride, y_stride;
  bool bias, add_to_output;
  bool operator==(const Shape&) const = default;
};

struct Primitive {
  Shape shape;
  uint64_t last_use = 0;
  dnnl::matmul matmul;
  memory::desc x, y, bias, scratchpad;
};

memory::data_type TypeOf(ActivationType type) {
  return type == ActivationType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// oneDNN works with the team of the thread that calls it, when a primitive is made and when it
// runs.
void UseThisThreadAlone() {
  thread_local const bool once = [] {
    omp_set_num_threads(1);
    return true;
  }();
  (void)once;
}

}  // namespace

struct OnednnWeights::Slice {
  int64_t row_begin = 0, rows = 0, cols = 0;
  int64_t output_stride = 0;  // of the outputs that the layout of the weights is chosen for
  ActivationType type = ActivationType::kF32;
  dnnl::engine engine;
  dnnl::stream stream;
  memory weights;
  std::vector<char> scratchpad;
  std::vector<Primitive> primitives;
  uint64_t uses = 0;
  std::string error;

  Slice() : engine(dnnl::engine::kind::cpu, 0), stream(engine) {}

  dnnl::matmul::primitive_desc Describe(const Shape& shape,
                                        const memory::desc& weights_desc) const {
    const memory::desc x({shape.tokens, cols}, TypeOf(type), memory::dims{shape.x_stride, 1});
    const memory::desc y({shape.tokens, rows}, memory::data_type::f32,
                         memory::dims{shape.y_stride, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (shape.add_to_output) {
      dnnl::post_ops post_ops;
      post_ops.append_sum(1.0f);
      attributes.set_post_ops(post_ops);
    }
    if (!shape.bias) return {dnnl::matmul::desc(x, weights_desc, y), attributes, engine};
    const memory::desc bias({1, rows}, memory::data_type::f32, memory::format_tag::ab);
    return {dnnl::matmul::desc(x, weights_desc, bias, y), attributes, engine};
  }

  // Decodes rows [row_begin, row_begin + rows) of the parts and reorders them.
  void Pack(const std::vector<StoredMatrix>& parts) {
    std::vector<float> decoded(static_cast<size_t>(rows * cols));
    int64_t part_begin = 0;
    for (const StoredMatrix& part : parts) {
      const int64_t begin = std::max(row_begin, part_begin);
      const int64_t end = std::min(row_begin + rows, part_begin + part.rows);
      for (int64_t row = begin; row < end; ++row) {
        DecodeRow(part.dtype, part.data + (row - part_begin) * part.row_bytes(), cols,
                  decoded.data() + (row - row_begin) * cols);
      }
      part_begin += part.rows;
    }
    const memory::desc any({cols, rows}, TypeOf(type), memory::format_tag::any);
    // oneDNN has fast kernels only where the layout was chosen for the strides that run: the rows
    // of an output hold all slices side by side.
    const auto description = Describe({64, cols, output_stride, false, false}, any);
    memory plain({{cols, rows}, memory::data_type::f32, memory::format_tag::ba}, engine,
                 decoded.data());
    weights = memory(description.weights_desc(), engine);
    dnnl::reorder(plain, weights).execute(stream, plain, weights);
    stream.wait();
  }

  const Primitive& Find(const Shape& shape) {
    ++uses;
    Primitive* oldest = nullptr;
    for (Primitive& primitive : primitives) {
      if (primitive.shape == shape) {
        primitive.last_use = uses;
        return primitive;
      }
      if (oldest == nullptr || primitive.last_use < oldest->last_use) oldest = &primitive;
    }
    const auto description = Describe(shape, weights.get_desc());
    if (primitives.size() < kMaxPrimitives) {
      primitives.emplace_back();
      oldest = &primitives.back();
    }
    *oldest = {shape,
               uses,
               dnnl::matmul(description),
               description.src_desc(),
               description.dst_desc(),
               description.bias_desc(),
               description.scratchpad_desc()};
    if (scratchpad.size() < oldest->scratchpad.get_size() + 64) {
      scratchpad.resize(oldest->scratchpad.get_size() + 64);
    }
    return *oldest;
  }

  void Run(const GemmParams& params, const void* x, int64_t x_stride) {
    float* y = params.y + row_begin;
    if (params.residual != nullptr && params.residual != params.y) {
      for (int64_t t = 0; t < params.tokens; ++t) {
        std::memcpy(y + t * params.y_stride, params.residual + row_begin + t * params.y_stride,
                    static_cast<size_t>(rows) * sizeof(float));
      }
    }
    const Primitive& primitive = Find({params.tokens, x_stride, params.y_stride,
                                       params.bias != nullptr, params.residual != nullptr});
    char* scratch = scratchpad.data();
    scratch += -reinterpret_cast<uintptr_t>(scratch) % 64;
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, memory(primitive.x, engine, const_cast<void*>(x))},
        {DNNL_ARG_WEIGHTS, weights},
        {DNNL_ARG_DST, memory(primitive.y, engine, y)},
        {DNNL_ARG_SCRATCHPAD, memory(primitive.scratchpad, engine, scratch)}};
    if (params.bias != nullptr) {
      arguments.emplace(DNNL_ARG_BIAS, memory(primitive.bias, engine,
                                              const_cast<float*>(params.bias + row_begin)));
    }
    primitive.matmul.execute(stream, arguments);
    stream.wait();
  }
};

OnednnWeights::OnednnWeights() = default;
OnednnWeights::~OnednnWeights() = default;

absl::StatusOr<std::unique_ptr<OnednnWeights>> OnednnWeights::Create(
    const CpuContext& context, const std::vector<StoredMatrix>& parts, ActivationType type) {
  std::unique_ptr<OnednnWeights> result(new OnednnWeights());
  int64_t rows = 0;
  for (const StoredMatrix& part : parts) rows += part.rows;
  result->type_ = type;
  result->cols_ = parts[0].cols;
  const int threads = context.pool->threads();
  std::vector<std::string> errors(threads);
  result->slices_.resize(threads);
  context.pool->Run([&](int thread) {
    UseThisThreadAlone();
    const ThreadPool::Range range = ThreadPool::PartOf(rows, kSliceGrain, thread, threads);
    if (range.begin >= range.end) return;
    try {
      auto slice = std::make_unique<Slice>();
      slice->row_begin = range.begin;
      slice->rows = range.end - range.begin;
      slice->cols = result->cols_;
      slice->output_stride = rows;
      slice->type = type;
      slice->Pack(parts);
      result->slices_[thread] = std::move(slice);
    } catch (const std::exception& e) {
      errors[thread] = e.what();
    }
  });
  for (const std::string& error : errors) {
    if (!error.empty()) return absl::UnimplementedError(absl::StrCat("oneDNN: ", error));
  }
  return result;
}

absl::Status OnednnWeights::Run(const CpuContext& context, const GemmParams& params) {
  const GemmKernels& kernels = KernelsOf(context.isa);
  const int threads = context.pool->threads();
  const void* x = params.x;
  int64_t x_stride = params.x_stride;
  if (type_ == ActivationType::kBF16) {
    if (x_bf16_.size() < static_cast<size_t>(params.tokens * cols_)) {
      x_bf16_.resize(static_cast<size_t>(params.tokens * cols_));
    }
    context.pool->Run([&](int thread) {
      const ThreadPool::Range range = ThreadPool::PartOf(params.tokens, 1, thread, threads);
      for (int64_t t = range.begin; t < range.end; ++t) {
        kernels.round_to_bf16(params.x + t * params.x_stride, cols_, x_bf16_.data() + t * cols_);
      }
    });
    x = x_bf16_.data();
    x_stride = cols_;
  }
  std::vector<std::string> errors(threads);
  context.pool->Run([&](int thread) {
    UseThisThreadAlone();
    try {
      for (size_t i = thread; i < slices_.size(); i += threads) {
        if (slices_[i] == nullptr) continue;
        slices_[i]->Run(params, x, x_stride);
        if (!params.round_output) continue;
        for (int64_t t = 0; t < params.tokens; ++t) {
          kernels.round_in_place(params.y + t * params.y_stride + slices_[i]->row_begin,
                                 slices_[i]->rows);
        }
      }
    } catch (const std::exception& e) {
      errors[thread] = e.what();
    }
  });
  for (const std::string& error : errors) {
    if (!error.empty()) return absl::InternalError(absl::StrCat("oneDNN: ", error));
  }
  return absl::OkStatus();
}

size_t OnednnWeights::size_bytes() const {
  size_t size_bytes = 0;
  for (const auto& slice : slices_) {
    if (slice != nullptr) size_bytes += slice->weights.get_desc().get_size();
  }
  return size_bytes;
}

}  // namespace verbatim::kernels::cpu
