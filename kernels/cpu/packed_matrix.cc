// Checks stored matrices, packs them into panels on all threads, and reads embedding rows.
#include "kernels/cpu/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/gemm_layout.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

absl::Status CheckPart(absl::Span<const StoredMatrix> parts, size_t i) {
  const StoredMatrix& part = parts[i];
  const DTypeInfo info = InfoOf(part.dtype);
  if (info.block_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": unknown dtype"));
  }
  if (part.rows <= 0 || part.cols <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": shape [", part.rows, ", ", part.cols, "] is not positive"));
  }
  if (part.cols != parts[0].cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": cols ", part.cols, " differ from part 0's ", parts[0].cols));
  }
  if (part.cols % info.block_elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": cols ", part.cols,
                                                   " is not a multiple of ", info.block_elements,
                                                   ", the block of ", std::string(info.name)));
  }
  if (part.cols > kMaxCols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": cols ", part.cols, " is above ", kMaxCols));
  }
  if (part.rows > (int64_t{1} << 40) / part.cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", i, ": rows ", part.rows, " times cols ", part.cols, " is too large"));
  }
  if (part.data == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("part ", i, ": data is null"));
  }
  return absl::OkStatus();
}

// Node over n > 1 chunks: ceil(n / 2) to the left. A node is complete with its last chunk.
void CountJoins(int64_t first, int64_t chunks, std::vector<uint8_t>& joins) {
  if (chunks == 1) return;
  const int64_t left = (chunks + 1) / 2;
  CountJoins(first, left, joins);
  CountJoins(first + left, chunks - left, joins);
  ++joins[first + chunks - 1];
}

}  // namespace

AlignedBytes::AlignedBytes(size_t size_bytes) : size_bytes_(size_bytes) {
  const size_t alignment = size_bytes >= kHugePage ? kHugePage : 64;
  const size_t allocated = (size_bytes + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, allocated)));
  if (data_ != nullptr && size_bytes >= kHugePage) {
    madvise(data_.get(), allocated, MADV_HUGEPAGE);  // only a hint
  }
}

PackedMatrix::~PackedMatrix() = default;

size_t PackedMatrix::size_bytes() const { return storage_.size_bytes(); }

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(const CpuContext& context,
                                                         absl::Span<const StoredMatrix> parts,
                                                         const LoadMatrixOptions& load_options,
                                                         const GemmOptions& gemm_options) {
  if (parts.empty()) return absl::InvalidArgumentError("a matrix needs at least one part");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (absl::Status status = CheckPart(parts, i); !status.ok()) return status;
  }
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix());
  matrix->cols_ = parts[0].cols;
  matrix->parts_.assign(parts.begin(), parts.end());
  matrix->load_options_ = load_options;
  matrix->gemm_options_ = gemm_options;
  for (const StoredMatrix& part : parts) matrix->rows_ += part.rows;
  if (!load_options.for_gemm) return matrix;

  const int64_t chunks = (matrix->cols_ + kChunk - 1) / kChunk;
  matrix->tree_joins_.resize(chunks);
  CountJoins(0, chunks, matrix->tree_joins_);
  size_t size_bytes = 0;
  int64_t row = 0;
  for (const StoredMatrix& part : parts) {
    PanelSegment segment;
    segment.dtype = part.dtype;
    segment.row_begin = row;
    segment.rows = part.rows;
    segment.panel_begin = matrix->panels_;
    segment.panels = (part.rows + kPanelLanes - 1) / kPanelLanes;
    segment.panel_bytes = PanelBytes(part.dtype, part.cols);
    matrix->segments_.push_back(segment);
    size_bytes += static_cast<size_t>(segment.panels * segment.panel_bytes);
    matrix->panels_ += segment.panels;
    row += part.rows;
  }
  matrix->storage_ = AlignedBytes(size_bytes);
  if (matrix->storage_.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a packed matrix of ", size_bytes, " bytes"));
  }
  std::byte* at = matrix->storage_.data();
  for (PanelSegment& segment : matrix->segments_) {
    segment.data = at;
    at += segment.panels * segment.panel_bytes;
  }
  const std::byte* base = matrix->storage_.data();
  context.pool->Run([&](int thread) {
    const ThreadPool::Range range =
        ThreadPool::PartOf(matrix->panels_, 1, thread, context.pool->threads());
    for (size_t i = 0; i < parts.size(); ++i) {
      const PanelSegment& segment = matrix->segments_[i];
      const int64_t begin = std::max(range.begin - segment.panel_begin, int64_t{0});
      const int64_t end = std::min(range.end - segment.panel_begin, segment.panels);
      for (int64_t panel = begin; panel < end; ++panel) {
        std::byte* to =
            matrix->storage_.data() + (segment.data - base) + panel * segment.panel_bytes;
        std::memset(to, 0, static_cast<size_t>(segment.panel_bytes));
        PackPanel(parts[i], panel * kPanelLanes, to);
      }
    }
  });
  return matrix;
}

void DecodeEmbeddingRow(const PackedMatrix& matrix, int64_t row, float* out) {
  for (const StoredMatrix& part : matrix.parts()) {
    if (row < part.rows) {
      DecodeRow(part.dtype, part.data + row * part.row_bytes(), part.cols, out);
      return;
    }
    row -= part.rows;
  }
}

}  // namespace verbatim::kernels::cpu
