// Barriers in shared memory and copies of boxes.
#include "simt/async.h"

#include <cstring>
#include <deque>
#include <map>
#include <string>

#include "simt/fiber.h"

namespace simt {
namespace {

struct Barrier {
  uint32_t arrivals = 0;  // of a phase
  uint32_t missing = 0;   // of the current one
  int64_t bytes = 0;      // expected and not there yet
  uint32_t phase = 0;
  bool fenced = false;
  char tag = 0;

  void Advance() {
    if (missing > 0 || bytes != 0) return;
    missing = arrivals;
    ++phase;
  }
};

struct Copy {
  std::byte* shared;
  uint32_t address;  // of `shared`, in its block
  BoxedMatrix matrix;
  int64_t column, row;
  Barrier* barrier;
};

struct State {
  std::map<const void*, Barrier> barriers;
  std::deque<Copy> copies;
};
State& TheState() {
  static State state;
  return state;
}

uint32_t BoxBytes(const BoxedMatrix& matrix) { return matrix.box_rows * kBoxRowBytes; }

// The race check knows no copies: poison shows what comes too early.
void Deliver(const Copy& copy) {
  BeginUnchecked();
  const uint32_t to = copy.address;
  for (uint32_t i = 0; i < BoxBytes(copy.matrix); i += 2) {
    const int64_t row = copy.row + i / kBoxRowBytes, column = copy.column + i % kBoxRowBytes / 2;
    std::byte* place = copy.shared + (Swizzled(to + i) - to);
    if (row >= 0 && row < copy.matrix.rows && column >= 0 && column < copy.matrix.cols) {
      std::memcpy(place,
                  static_cast<const std::byte*>(copy.matrix.base) + row * copy.matrix.pitch_bytes +
                      column * 2,
                  2);
    } else {
      std::memset(place, 0, 2);
    }
  }
  EndUnchecked();
  copy.barrier->bytes -= BoxBytes(copy.matrix);
  Release(&copy.barrier->tag);
  copy.barrier->Advance();
}

const Background kCopies = {
    .reset =
        [] {
          TheState().barriers.clear();
          TheState().copies.clear();
        },
    .advance =
        [](uint64_t choice) {
          std::deque<Copy>& copies = TheState().copies;
          if (copies.empty()) return false;
          const auto chosen = copies.begin() + static_cast<std::ptrdiff_t>(
                                                   choice == ~uint64_t{0} ? copies.size() - 1
                                                                          : choice % copies.size());
          const Copy copy = *chosen;
          copies.erase(chosen);
          Deliver(copy);
          return true;
        },
    .unfinished = []() -> const char* {
      if (!TheState().copies.empty()) return "copies of boxes under way";
      for (const auto& [at, barrier] : TheState().barriers) {
        if (barrier.bytes != 0) return "a barrier whose bytes were not those that it expected";
      }
      return "";
    },
};

Barrier& BarrierAt(const void* barrier, const Place& where) {
  const auto found = TheState().barriers.find(barrier);
  if (found == TheState().barriers.end()) Fault("no barrier was initialised here", nullptr, where);
  return found->second;
}

}  // namespace

uint32_t SharedAddressOf(const void* shared) {
  return kSharedWindow +
         static_cast<uint32_t>(static_cast<const std::byte*>(shared) - SharedMemory());
}

const std::byte* SharedMemoryAt(uint32_t address) {
  if (address < kSharedWindow || address - kSharedWindow >= SharedBytes()) return nullptr;
  return SharedMemory() + (address - kSharedWindow);
}

void InitBarrier(const void* barrier, uint32_t arrivals, const Place& where) {
  if (SharedAddressOf(barrier) % 8 != 0 || arrivals == 0) {
    Fault("a barrier without arrivals, or not at a multiple of 8", nullptr, where);
  }
  AddBackground(&kCopies);
  TheState().barriers[barrier] = {.arrivals = arrivals, .missing = arrivals};
}

void FenceAsyncProxy() {
  for (auto& [at, barrier] : TheState().barriers) barrier.fenced = true;
}

const void* AtRank(const void* own, uint32_t rank, const Place& where) {
  const std::byte* memory = SharedMemoryOf(rank);
  if (memory == nullptr)
    Fault("a block that the cluster does not have, or that has ended", nullptr, where);
  return memory + (static_cast<const std::byte*>(own) - SharedMemory());
}

void Arrive(const void* barrier, uint32_t expected_bytes, const Place& where) {
  Barrier& b = BarrierAt(barrier, where);
  if (b.missing == 0) Fault("more arrivals than the barrier's phase has", nullptr, where);
  b.bytes += expected_bytes;
  --b.missing;
  Release(&b.tag);
  b.Advance();
}

void WaitForPhase(const void* barrier, uint32_t parity, const Place& where) {
  Barrier& b = BarrierAt(barrier, where);
  WaitUntil(
      [](const void* object, uint32_t parity) {
        return static_cast<const Barrier*>(object)->phase % 2 != parity;
      },
      &b, parity, "a phase of a barrier", where);
  Acquire(&b.tag);
}

void CopyBox(void* shared, const BoxedMatrix& matrix, int64_t column, int64_t row,
             const void* barrier, uint32_t ranks, const Place& where) {
  const uint32_t to = SharedAddressOf(shared);
  if (to % 1024 != 0) Fault("a swizzled box not at a multiple of 1024", nullptr, where);
  if (SharedMemoryAt(to + BoxBytes(matrix) - 1) == nullptr) {
    Fault("a box past shared memory", nullptr, where);
  }
  for (uint32_t rank = 0; rank < 32; ++rank) {
    if ((ranks >> rank & 1) == 0) continue;
    Barrier& b = BarrierAt(AtRank(barrier, rank, where), where);
    if (!b.fenced) Fault("a copy to a barrier that no fence made known to it", nullptr, where);
    auto* there = static_cast<std::byte*>(const_cast<void*>(AtRank(shared, rank, where)));
    BeginUnchecked();
    std::memset(there, kPoison, BoxBytes(matrix));
    EndUnchecked();
    TheState().copies.push_back({there, to, matrix, column, row, &b});
  }
}

}  // namespace simt
