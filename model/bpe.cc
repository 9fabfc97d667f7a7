// Two loops with one result: a scan for words, a heap over a linked list for everything longer.
#include "model/bpe.h"

#include <array>
#include <queue>

namespace verbatim::model {
namespace {

// Up to this many symbols a scan for the best pair beats a heap.
constexpr size_t kShortSymbols = 48;

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(absl::Span<const BpeMerge> merges) {
  merges_.reserve(merges.size());
  for (const BpeMerge& m : merges) merges_[PairKey(m.left, m.right)] = {m.rank, m.result};
}

Bpe::Target Bpe::Find(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? Target{kNoMerge, -1} : it->second;
}

void Bpe::MergeFrom(size_t begin, std::vector<int32_t>* symbols) const {
  const size_t n = symbols->size() - begin;
  if (n < 2) return;
  if (n <= kShortSymbols) {
    MergeShort(begin, symbols);
  } else {
    MergeLong(begin, symbols);
  }
}

void Bpe::MergeShort(size_t begin, std::vector<int32_t>* symbols) const {
  int32_t* s = symbols->data() + begin;
  size_t n = symbols->size() - begin;
  std::array<Target, kShortSymbols> pair;  // pair[i] joins s[i] and s[i + 1]
  for (size_t i = 0; i + 1 < n; ++i) pair[i] = Find(s[i], s[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (pair[i].rank < pair[best].rank) best = i;
    }
    if (pair[best].rank == kNoMerge) break;
    s[best] = pair[best].result;
    for (size_t i = best + 1; i + 1 < n; ++i) s[i] = s[i + 1];
    for (size_t i = best + 1; i + 2 < n; ++i) pair[i] = pair[i + 1];
    --n;
    if (best > 0) pair[best - 1] = Find(s[best - 1], s[best]);
    if (best + 1 < n) pair[best] = Find(s[best], s[best + 1]);
  }
  symbols->resize(begin + n);
}

void Bpe::MergeLong(size_t begin, std::vector<int32_t>* symbols) const {
  struct Node {
    int32_t symbol;  // -1 once it is merged into its left neighbour
    int64_t previous;
    int64_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t result;
    int64_t position;
    int32_t left;
    int32_t right;
    bool operator<(const Candidate& o) const {  // priority_queue pops the greatest
      return rank != o.rank ? rank > o.rank : position > o.position;
    }
  };
  const int64_t n = static_cast<int64_t>(symbols->size() - begin);
  std::vector<Node> nodes(n);
  for (int64_t i = 0; i < n; ++i) {
    nodes[i] = {(*symbols)[begin + i], i - 1, i + 1 < n ? i + 1 : -1};
  }
  std::priority_queue<Candidate> heap;
  const auto propose = [&](int64_t left) {
    if (left < 0 || nodes[left].next < 0) return;
    const int32_t a = nodes[left].symbol, b = nodes[nodes[left].next].symbol;
    const Target target = Find(a, b);
    if (target.rank != kNoMerge) heap.push({target.rank, target.result, left, a, b});
  };
  for (int64_t i = 0; i + 1 < n; ++i) propose(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Node& left = nodes[top.position];
    if (left.symbol != top.left || left.next < 0) continue;
    Node& right = nodes[left.next];
    if (right.symbol != top.right) continue;
    left.symbol = top.result;
    right.symbol = -1;
    left.next = right.next;
    if (left.next >= 0) nodes[left.next].previous = top.position;
    propose(left.previous);
    propose(top.position);
  }
  size_t out = begin;
  for (int64_t i = 0; i >= 0; i = nodes[i].next) (*symbols)[out++] = nodes[i].symbol;
  symbols->resize(out);
}

}  // namespace verbatim::model
