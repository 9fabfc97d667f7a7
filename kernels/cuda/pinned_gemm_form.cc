// Comparison of the two forms of the pinned product, and the choice between them.
#include "kernels/cuda/pinned_gemm_form.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

// Two tiles of tokens, the second not full.
constexpr int64_t kCheckedTokens = 128 + 35;
constexpr int64_t kCheckedOutputBytes = int64_t{32} << 20;

// Numbers that follow from a seed (SplitMix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// Rows of bf16 values. What an instruction does to a sum shows where addends are of one magnitude,
// where they are of many, and where they are subnormal: rows take turns. One value in 32 is zero.
std::vector<uint16_t> RandomRows(int64_t rows, int64_t cols, uint64_t seed) {
  constexpr struct {
    uint64_t middle, spread;  // of the exponent
  } kKinds[] = {{127, 0}, {127, 3}, {127, 10}, {127, 24}, {60, 8}};
  Random random(seed);
  const int64_t pitch = RowPitch(cols);
  std::vector<uint16_t> values(static_cast<size_t>(rows * pitch));
  for (int64_t row = 0; row < rows; ++row) {
    const auto kind = kKinds[static_cast<size_t>(row) % std::size(kKinds)];
    for (int64_t col = 0; col < cols; ++col) {
      const uint64_t bits = random.Next();
      if (bits >> 59 == 0) continue;
      const uint64_t exponent = kind.middle - kind.spread + (bits >> 16) % (2 * kind.spread + 1);
      values[static_cast<size_t>(row * pitch + col)] =
          static_cast<uint16_t>((bits & 0x807f) | exponent << 7);
    }
  }
  return values;
}

absl::StatusOr<std::unique_ptr<DeviceBuffer>> Put(const std::vector<uint16_t>& values,
                                                  Uploader& uploader) {
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer = DeviceBuffer::Create(values.size() * 2);
  if (!buffer.ok()) return buffer.status();
  absl::Status status = uploader.Upload((*buffer)->data(), values.data(), values.size() * 2);
  if (!status.ok()) return status;
  return buffer;
}

// What takes turns least, counted in bytes of shared memory read. The wider tile reads fewer a
// product, by a ninth; the narrower one may fill the last turn better. A cluster halves what
// weights cost the second-level cache; it is left out where its last tile of tokens would be empty
// and a large part of the work.
WgmmaTiles TilesFor(const GemmPinnedArgs& args) {
  const int64_t token_tiles = (args.tokens + 127) / 128;
  const int cluster = token_tiles % 2 == 0 || token_tiles > 8 ? 2 : 1;
  const int64_t tiles = (token_tiles + cluster - 1) / cluster * cluster;
  const auto turns = [&](int64_t columns) {
    const int64_t all = tiles * ((args.part.rows + columns - 1) / columns);
    return (all + args.multiprocessors - 1) / args.multiprocessors;
  };
  return {turns(128) * 128 * 9 < turns(192) * 192 * 8 ? 128 : 192, cluster};
}

}  // namespace

absl::StatusOr<std::unique_ptr<PinnedGemmForm>> PinnedGemmForm::Create(
    bool wgmma, const runtime::DeviceInfo& device, Uploader& uploader, Stream stream) {
  auto form = std::unique_ptr<PinnedGemmForm>(new PinnedGemmForm(device, stream));
  if (device.major != 9) {
    form->why_not_ = "the device has none";
    return form;
  }
  // For programs without a flag for it.
  const char* variable = std::getenv("VERBATIM_PINNED_GEMM");
  if (!wgmma || (variable != nullptr && std::strcmp(variable, "mma") == 0)) {
    form->why_not_ = "as asked";
    return form;
  }
  if (absl::Status allowed = AllowSharedMemory(device, GemmPinnedWgmmaNeeds()); !allowed.ok()) {
    if (!absl::IsFailedPrecondition(allowed)) return allowed;
    form->why_not_ = std::string(allowed.message());
    return form;
  }
  absl::StatusOr<std::unique_ptr<PinnedBuffer>> stuck = PinnedBuffer::Create(sizeof(uint32_t));
  if (!stuck.ok()) return stuck.status();
  form->stuck_ = *std::move(stuck);
  *form->stuck() = 0;
  const absl::StatusOr<bool> has_code = form->HasCode();
  if (!has_code.ok()) return has_code.status();
  if (!*has_code) {
    form->why_not_ = "this program was built without code for sm_90a";
    return form;
  }
  if (absl::Status checked = form->CheckShapes(uploader); !checked.ok()) return checked;
  return form;
}

absl::StatusOr<bool> PinnedGemmForm::HasCode() const {
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> answer = DeviceBuffer::Create(sizeof(uint32_t));
  if (!answer.ok()) return answer.status();
  uint32_t code = 0;
  absl::Status status = runtime::LaunchStatus(
      "Gemm", LaunchWgmmaProbe(static_cast<uint32_t*>((*answer)->data()), stream_));
  if (!status.ok()) return status;
  status = runtime::CopyToHost(&code, (*answer)->data(), sizeof(code), stream_);
  status.Update(runtime::Synchronize(stream_));
  if (!status.ok()) return status;
  return code == 1;
}

absl::Status PinnedGemmForm::CheckShapes(Uploader& uploader) {
  // One, two, three and four shards; shards of unequal length; a last chunk that is short; rows of
  // no whole tile; a long shard.
  constexpr struct {
    int64_t rows, cols;
  } kShapes[] = {{40, 64}, {200, 256}, {130, 384}, {193, 576}, {70, 2112}};
  for (const auto& shape : kShapes) {
    absl::StatusOr<std::unique_ptr<DeviceBuffer>> weights =
        Put(RandomRows(shape.rows, shape.cols, 1), uploader);
    if (!weights.ok()) return weights.status();
    const PackedPart part{.format = DType::kBF16,
                          .rows = shape.rows,
                          .cols = shape.cols,
                          .quants = (*weights)->data()};
    absl::Status status = Check(part, numerics::kShardDepth, uploader);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status PinnedGemmForm::Check(const PackedPart& part, int shard_depth, Uploader& uploader) {
  if (!why_not_.empty() || !WgmmaCanCompute(part, kCheckedTokens)) return absl::OkStatus();
  if (!checked_.insert({part.rows, part.cols, shard_depth}).second) return absl::OkStatus();
  // The last rows of a matrix that has too many.
  const int64_t most = std::max<int64_t>(
      384, kCheckedOutputBytes / static_cast<int64_t>(sizeof(float)) / kCheckedTokens);
  PackedPart last = part;
  last.first_row = 0;
  last.rows = std::min(part.rows, most);
  last.quants =
      static_cast<const char*>(part.quants) + (part.rows - last.rows) * RowPitch(part.cols) * 2;
  const absl::StatusOr<std::string> difference =
      Difference(last, kCheckedTokens, shard_depth, 2, uploader);
  if (!difference.ok()) {
    return absl::Status(
        difference.status().code(),
        absl::StrCat(std::string(difference.status().message()),
                     "; while wgmma was compared with mma.sync: --pinned-gemm mma does without"));
  }
  if (!difference->empty()) {
    why_not_ =
        absl::StrCat("wgmma gave other bits for ", part.rows, " x ", part.cols, ", ", *difference);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PinnedGemmForm::Difference(const PackedPart& part, int64_t tokens,
                                                       int shard_depth, uint64_t seed,
                                                       Uploader& uploader) const {
  const size_t count = static_cast<size_t>(tokens * part.rows);
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> x =
      Put(RandomRows(tokens, part.cols, seed), uploader);
  if (!x.ok()) return x.status();
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> y = DeviceBuffer::Create(count * sizeof(float));
  if (!y.ok()) return y.status();
  const GemmPinnedArgs args{.part = part,
                            .tokens = tokens,
                            .rounded_x = (*x)->data(),
                            .y = static_cast<float*>((*y)->data()),
                            .y_stride = part.rows,
                            .multiprocessors = device_.multiprocessors,
                            .shard_depth = shard_depth};
  std::vector<uint32_t> expected(count), actual(count);
  const auto fetch = [&](int launched, std::vector<uint32_t>* bits) {
    absl::Status status = runtime::LaunchStatus("Gemm", launched);
    if (!status.ok()) return status;
    status = runtime::CopyToHost(bits->data(), args.y, count * sizeof(float), stream_);
    status.Update(runtime::Synchronize(stream_));
    return status;
  };
  absl::Status status = fetch(LaunchGemmPinned(args, stream_), &expected);
  if (!status.ok()) return status;
  for (const WgmmaTiles& tiles : kWgmmaTiles) {
    // So that a tile that is not computed shows.
    status = runtime::Fill(args.y, 0xff, count * sizeof(float), stream_);
    if (!status.ok()) return status;
    status = fetch(LaunchGemmPinnedWgmma(args, tiles, stuck(), stream_), &actual);
    if (!status.ok()) return status;
    for (size_t i = 0; i < count; ++i) {
      if (expected[i] == actual[i]) continue;
      return absl::StrCat("tiles of ", tiles.columns, " x ", tiles.cluster, ": token ",
                          i / static_cast<size_t>(part.rows), ", output ",
                          i % static_cast<size_t>(part.rows));
    }
  }
  return std::string();
}

int PinnedGemmForm::Launch(const GemmPinnedArgs& args, Stream stream) const {
  if (!why_not_.empty() || args.tokens < kLeastTokens || !WgmmaCanCompute(args.part, args.tokens)) {
    return LaunchGemmPinned(args, stream);
  }
  return LaunchGemmPinnedWgmma(args, TilesFor(args), stuck(), stream);
}

std::string PinnedGemmForm::Describe() const {
  if (device_.major != 9) return "";
  if (why_not_.empty()) return "pinned products of many tokens by wgmma";
  return absl::StrCat(kPinnedByMma, " (", why_not_, ")");
}

absl::Status PinnedGemmForm::Explained(const absl::Status& status) const {
  if (status.ok() || stuck_ == nullptr || *stuck() == 0) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(std::string(status.message()),
                   "; a product by wgmma waited for something that never came: --pinned-gemm mma "
                   "does without"));
}

}  // namespace verbatim::kernels::cuda
