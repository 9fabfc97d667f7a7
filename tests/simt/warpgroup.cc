// Asynchronous products of warpgroups.
#include "simt/warpgroup.h"

#include <array>
#include <cstring>
#include <deque>
#include <list>
#include <memory>
#include <vector>

#include "simt/async.h"

namespace simt {
namespace {

constexpr int kDepth = 16;  // columns of a product's operands
constexpr int kWarpRows = 16;

using Add = float (*)(float sum, const uint16_t* a, const uint16_t* b);

// The accumulators of a warp on which products are under way.
struct Chain {
  std::array<float*, kWarpSize> d;
  std::vector<float> sums;  // [lane][columns / 2]
  int under_way = 0;
};
struct Product {
  uint64_t a, b;
  int columns;
  Add add;
  Chain* chain;
  int group;
  bool done = false;
};
struct WarpState {
  std::list<Chain> chains;
  std::deque<Product> products;
  int group = 0;
  bool fenced = false;
  size_t issued = 0;
};
struct State {
  std::vector<WarpState> warps;
  std::vector<std::vector<Place>> issued;  // of each warpgroup, by the warp that is ahead
};
State& TheState() {
  static State state;
  return state;
}

const Background kProducts = {
    .reset =
        [] {
          TheState().warps.clear();
          TheState().issued.clear();
        },
    .advance = [](uint64_t) { return false; },
    .unfinished = []() -> const char* {
      for (const WarpState& warp : TheState().warps) {
        if (!warp.products.empty()) return "matrix products that were never waited for";
      }
      for (size_t i = 0; i < TheState().warps.size(); ++i) {
        if (TheState().warps[i].issued != TheState().issued[i / kWarpgroupWarps].size()) {
          return "a warp that issued fewer products than others of its warpgroup";
        }
      }
      return "";
    },
};

WarpState& ThisWarp() {
  State& state = TheState();
  if (state.warps.empty()) {
    AddBackground(&kProducts);
    const size_t warps = ThreadCount() / kWarpSize;
    state.warps.resize(warps);
    state.issued.resize((warps + kWarpgroupWarps - 1) / kWarpgroupWarps);
  }
  return state.warps[ThreadNumber() / kWarpSize];
}

// What is wrong with a descriptor, or null. The modes that kernels do not use are not modelled.
const char* WrongWith(uint64_t descriptor, int rows) {
  if (descriptor >> 62 != 1) return "a matrix descriptor that is not of the 128-byte swizzle";
  if ((descriptor >> 49 & 7) != 0) return "a matrix descriptor with a base offset";
  const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if ((start & ~0x7fu) % 1024 != 0) return "a swizzled matrix not at a multiple of 1024";
  if (start % 128 + kDepth * 2 > 128) return "a step that crosses a swizzled row";
  const uint32_t last = start / 1024 * 1024 + static_cast<uint32_t>(rows / 8 - 1) * stride + 1023;
  if (SharedMemoryAt(start) == nullptr || SharedMemoryAt(last) == nullptr) {
    return "a matrix outside shared memory";
  }
  return nullptr;
}

// Row `row` of the matrix: groups of eight rows of 128 bytes lie the stride apart.
void ReadRow(uint64_t descriptor, int row, uint16_t (&elements)[kDepth]) {
  const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint32_t at =
      start + static_cast<uint32_t>(row / 8) * stride + static_cast<uint32_t>(row % 8) * 128;
  for (uint32_t k = 0; k < kDepth; ++k) {
    std::memcpy(&elements[k], SharedMemoryAt(Swizzled(at + 2 * k)), 2);
  }
}

void Compute(Product& product, int warp_in_group) {
  product.done = true;
  uint16_t a[kWarpRows][kDepth];
  for (int row = 0; row < kWarpRows; ++row) {
    ReadRow(product.a, kWarpRows * warp_in_group + row, a[row]);
  }
  for (int column = 0; column < product.columns; ++column) {
    uint16_t b[kDepth];
    ReadRow(product.b, column, b);
    for (int row = 0; row < kWarpRows; ++row) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      const int i = column / 8 * 4 + row / 8 * 2 + column % 2;
      float& sum = product.chain->sums.at(lane * product.columns / 2 + i);
      sum = product.add(sum, a[row], b);
    }
  }
}

struct Issued {
  float* d;
  int columns;
  uint64_t a, b;
  Add add;
  const Place* where;
};

void Issue(WarpLanes& lanes) {
  const Issued& first = *static_cast<const Issued*>(lanes.in[0]);
  WarpState& warp = ThisWarp();
  for (const void* lane : lanes.in) {
    const Issued& other = *static_cast<const Issued*>(lane);
    if (other.a != first.a || other.b != first.b) {
      Fault("lanes with different matrix descriptors", nullptr, *first.where);
    }
  }
  for (auto [descriptor, rows] :
       {std::pair{first.a, kWarpRows * kWarpgroupWarps}, std::pair{first.b, first.columns}}) {
    const char* wrong = WrongWith(descriptor, rows);
    if (wrong != nullptr) Fault(wrong, nullptr, *first.where);
  }
  const size_t warp_number = ThreadNumber() / kWarpSize;
  std::vector<Place>& group = TheState().issued[warp_number / kWarpgroupWarps];
  if (warp.issued == group.size()) group.push_back(*first.where);
  const Place& there = group[warp.issued++];
  if (there.line != first.where->line || std::strcmp(there.file, first.where->file) != 0) {
    Fault("a warpgroup whose warps issue different products: another", &there, *first.where);
  }
  Chain* chain = nullptr;
  for (Chain& c : warp.chains) {
    if (c.d[0] == first.d) chain = &c;
  }
  const size_t values = static_cast<size_t>(first.columns) / 2;
  if (chain == nullptr) {
    if (!warp.fenced) {
      Fault("a product on accumulators that no fence ordered", nullptr, *first.where);
    }
    chain = &warp.chains.emplace_back();
    chain->sums.resize(kWarpSize * values);
    for (size_t lane = 0; lane < kWarpSize; ++lane) {
      chain->d[lane] = static_cast<const Issued*>(lanes.in[lane])->d;
      std::memcpy(&chain->sums[lane * values], chain->d[lane], values * sizeof(float));
      std::memset(chain->d[lane], kPoison, values * sizeof(float));
    }
  }
  ++chain->under_way;
  warp.products.push_back({first.a, first.b, first.columns, first.add, chain, warp.group});
  // Products of one chain are computed in order.
  const bool early = OpenChoice() % 2 != 0;
  for (Product& product : warp.products) {
    if (!product.done && early) {
      Compute(product, static_cast<int>(warp_number) % kWarpgroupWarps);
    }
  }
}

struct Waiting {
  int pending_groups;
};

void Wait(WarpLanes& lanes) {
  WarpState& warp = ThisWarp();
  const int pending = static_cast<const Waiting*>(lanes.in[0])->pending_groups;
  const int warp_in_group = static_cast<int>(ThreadNumber() / kWarpSize) % kWarpgroupWarps;
  while (!warp.products.empty() && warp.products.front().group < warp.group - pending) {
    Product& product = warp.products.front();
    if (!product.done) Compute(product, warp_in_group);
    Chain* chain = product.chain;
    if (--chain->under_way == 0) {
      const size_t values = static_cast<size_t>(product.columns) / 2;
      for (size_t lane = 0; lane < kWarpSize; ++lane) {
        std::memcpy(chain->d[lane], &chain->sums[lane * values], values * sizeof(float));
      }
      warp.chains.remove_if([chain](const Chain& c) { return &c == chain; });
    }
    warp.products.pop_front();
  }
  warp.fenced = false;
}

bool descending_products = false;

}  // namespace

void SumProductsDescending(bool descending) { descending_products = descending; }
bool ProductsDescend() { return descending_products; }

void ProductFence(const Place& where) {
  WarpOperation(
      kFullMask, nullptr, nullptr, [](WarpLanes&) { ThisWarp().fenced = true; }, false, where);
}

void ProductAsync(float* d, int columns, uint64_t a, uint64_t b,
                  float (*add)(float sum, const uint16_t* a, const uint16_t* b),
                  const Place& where) {
  const Issued issued{d, columns, a, b, add, &where};
  WarpOperation(kFullMask, &issued, nullptr, Issue, false, where);
}

void ProductCommit(const Place& where) {
  WarpOperation(
      kFullMask, nullptr, nullptr, [](WarpLanes&) { ++ThisWarp().group; }, false, where);
}

void ProductWait(int pending_groups, const Place& where) {
  const Waiting waiting{pending_groups};
  WarpOperation(kFullMask, &waiting, nullptr, Wait, false, where);
}

}  // namespace simt
