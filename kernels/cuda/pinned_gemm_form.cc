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

// Two tiles of tokens, the second not full; or one and part of one of two of three experts.
constexpr int64_t kCheckedTokens = 128 + 35;
constexpr int32_t kCheckedOffsets[] = {0, 35, 35, kCheckedTokens};
constexpr size_t kCheckedExperts = std::size(kCheckedOffsets) - 1;
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

int64_t Blocks(int64_t count, int64_t each) { return (count + each - 1) / each; }

// A cluster halves what the operand that its blocks share costs the second-level cache; it is left
// out where its last tile of the other would be empty and a large part of the work.
int ClusterFor(int64_t tiles) { return tiles % 2 == 0 || tiles > 8 ? 2 : 1; }

// What takes turns least, counted in bytes of shared memory read. The wider tile reads fewer a
// product, by a ninth; the narrower one may fill the last turn better. `tiles(columns)` says how
// many there are.
template <class Tiles>
int ColumnsFor(int multiprocessors, Tiles tiles) {
  const auto cost = [&](int64_t columns, int64_t bytes) {
    return Blocks(tiles(columns), multiprocessors) * columns * bytes;
  };
  return cost(128, 9) < cost(192, 8) ? 128 : 192;
}

WgmmaTiles TilesFor(const GemmPinnedArgs& args) {
  const int64_t token_tiles = Blocks(args.tokens, 128);
  const int cluster = ClusterFor(token_tiles);
  const int64_t all_tokens = Blocks(token_tiles, cluster) * cluster;
  const auto tiles = [&](int64_t columns) { return all_tokens * Blocks(args.part.rows, columns); };
  return {ColumnsFor(args.multiprocessors, tiles), cluster};
}

WgmmaTiles TilesFor(const GroupedGemmArgs& args, int multiprocessors) {
  // As many as there are when experts' last tiles are half full.
  const GroupedPlaces& places = args.places;
  const int64_t place_tiles = Blocks(places.end - places.begin + 64 * places.num_experts, 128);
  const auto cluster = [&](int64_t columns) { return ClusterFor(Blocks(args.most_rows, columns)); };
  const int columns = ColumnsFor(multiprocessors, [&](int64_t columns) {
    const int blocks = cluster(columns);
    return place_tiles * Blocks(args.most_rows, columns * blocks) * blocks;
  });
  return {columns, cluster(columns)};
}

// A launch's arguments with all experts' weights those of one matrix.
class OneMatrixAsExperts {
 public:
  absl::Status Init(const PackedPart& part, Uploader& uploader) {
    Tables tables{};
    for (size_t e = 0; e < kCheckedExperts; ++e) {
      tables.parts[e] = part;
      const int error = MakeWeightMaps(&part, 1, tables.maps[e]);
      if (error != 0) return runtime::LaunchStatus("GroupedGemm", error);
      tables.offsets[e + 1] = kCheckedOffsets[e + 1];
    }
    absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer = DeviceBuffer::Create(sizeof(Tables));
    if (!buffer.ok()) return buffer.status();
    buffer_ = *std::move(buffer);
    return uploader.Upload(buffer_->data(), &tables, sizeof(tables));
  }
  GroupedGemmArgs Args(const GemmPinnedArgs& dense) const {
    auto* tables = static_cast<Tables*>(buffer_->data());
    return {.places = {.offsets = tables->offsets,
                       .num_experts = kCheckedExperts,
                       .begin = 0,
                       .end = dense.tokens,
                       .max_places = dense.tokens,
                       .rows = nullptr,
                       .x_rows = dense.tokens,
                       .fault = &tables->fault},
            .format = DType::kBF16,
            .parts = tables->parts,
            .maps = tables->maps,
            .most_rows = dense.part.rows,
            .cols = dense.part.cols,
            .rounded_x = dense.rounded_x,
            .y = dense.y,
            .y_stride = dense.y_stride,
            .shard_depth = dense.shard_depth};
  }

 private:
  struct Tables {
    char maps[kCheckedExperts][kWeightMapBytes];
    PackedPart parts[kCheckedExperts];
    int32_t offsets[kCheckedExperts + 1];
    uint32_t fault;
  };
  std::unique_ptr<DeviceBuffer> buffer_;
};

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
  for (const SharedNeeds& needs : {GemmPinnedWgmmaNeeds(), GroupedGemmWgmmaNeeds()}) {
    if (absl::Status allowed = AllowSharedMemory(device, needs); !allowed.ok()) {
      if (!absl::IsFailedPrecondition(allowed)) return allowed;
      form->why_not_ = std::string(allowed.message());
      return form;
    }
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
  // no whole tile; a long shard. Experts' tiles differ in where they lie, not in what they compute.
  constexpr struct {
    int64_t rows, cols;
    bool for_experts = false;
  } kShapes[] = {{40, 64}, {200, 256}, {130, 384}, {193, 576}, {40, 384, true}, {70, 2112}};
  for (const auto& shape : kShapes) {
    absl::StatusOr<std::unique_ptr<DeviceBuffer>> weights =
        Put(RandomRows(shape.rows, shape.cols, 1), uploader);
    if (!weights.ok()) return weights.status();
    const PackedPart part{.format = DType::kBF16,
                          .rows = shape.rows,
                          .cols = shape.cols,
                          .quants = (*weights)->data()};
    absl::Status status = Check(part, {.for_experts = shape.for_experts}, uploader);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status PinnedGemmForm::Check(const PackedPart& part, const LoadMatrixOptions& options,
                                   Uploader& uploader) {
  if (!why_not_.empty() || !WgmmaCanCompute(part, kCheckedTokens)) return absl::OkStatus();
  if (!checked_.insert({part.rows, part.cols, options.shard_depth, options.for_experts}).second) {
    return absl::OkStatus();
  }
  // The last rows of a matrix that has too many.
  const int64_t most = std::max<int64_t>(
      384, kCheckedOutputBytes / static_cast<int64_t>(sizeof(float)) / kCheckedTokens);
  PackedPart last = part;
  last.first_row = 0;
  last.rows = std::min(part.rows, most);
  last.quants =
      static_cast<const char*>(part.quants) + (part.rows - last.rows) * RowPitch(part.cols) * 2;
  const absl::StatusOr<std::string> difference = Difference(last, options, uploader);
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

absl::StatusOr<std::string> PinnedGemmForm::Difference(const PackedPart& part,
                                                       const LoadMatrixOptions& options,
                                                       Uploader& uploader) const {
  const size_t count = static_cast<size_t>(kCheckedTokens * part.rows);
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> x =
      Put(RandomRows(kCheckedTokens, part.cols, 2), uploader);
  if (!x.ok()) return x.status();
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> y = DeviceBuffer::Create(count * sizeof(float));
  if (!y.ok()) return y.status();
  const GemmPinnedArgs args{.part = part,
                            .tokens = kCheckedTokens,
                            .rounded_x = (*x)->data(),
                            .y = static_cast<float*>((*y)->data()),
                            .y_stride = part.rows,
                            .multiprocessors = device_.multiprocessors,
                            .shard_depth = options.shard_depth};
  OneMatrixAsExperts experts;
  if (absl::Status status = experts.Init(part, uploader); !status.ok()) return status;
  const auto launch = [&](const WgmmaTiles& tiles) {
    return options.for_experts ? LaunchGroupedGemmWgmma(experts.Args(args), tiles,
                                                        device_.multiprocessors, stuck(), stream_)
                               : LaunchGemmPinnedWgmma(args, tiles, stuck(), stream_);
  };
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
    status = fetch(launch(tiles), &actual);
    if (!status.ok()) return status;
    for (size_t i = 0; i < count; ++i) {
      if (expected[i] == actual[i]) continue;
      return absl::StrCat(options.for_experts ? "experts, " : "", "tiles of ", tiles.columns, " x ",
                          tiles.cluster, ": token ", i / static_cast<size_t>(part.rows),
                          ", output ", i % static_cast<size_t>(part.rows));
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

bool PinnedGemmForm::IsByWgmma(const GroupedGemmArgs& args) const {
  const int64_t count = args.places.end - args.places.begin;
  return why_not_.empty() && count > kFewPlacesEach * args.places.num_experts &&
         WgmmaCanComputeExperts(args);
}

int PinnedGemmForm::Launch(const GroupedGemmArgs& args, Stream stream) const {
  if (!IsByWgmma(args)) return LaunchGroupedGemmPinned(args, stream);
  return LaunchGroupedGemmWgmma(args, TilesFor(args, device_.multiprocessors),
                                device_.multiprocessors, stuck(), stream);
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
