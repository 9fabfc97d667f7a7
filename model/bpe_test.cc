// Byte-pair merging against its definition.
#include "model/bpe.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace verbatim::model {
namespace {

// The definition, word for word: of all adjacent pairs that merge, the lowest rank, leftmost, until
// there is none.
std::vector<int32_t> ByDefinition(const std::vector<BpeMerge>& merges, std::vector<int32_t> s) {
  while (true) {
    size_t at = 0;
    const BpeMerge* best = nullptr;
    for (size_t i = 0; i + 1 < s.size(); ++i) {
      for (const BpeMerge& m : merges) {
        if (m.left != s[i] || m.right != s[i + 1]) continue;
        if (best == nullptr || m.rank < best->rank) {
          best = &m;
          at = i;
        }
      }
    }
    if (best == nullptr) return s;
    s[at] = best->result;
    s.erase(s.begin() + static_cast<int64_t>(at) + 1);
  }
}

// Symbols 0 to 3 are characters, each merge makes a new symbol of two earlier ones.
std::vector<BpeMerge> RandomMerges(std::mt19937* rng, int count, bool equal_ranks) {
  std::vector<BpeMerge> merges;
  for (int i = 0; i < count; ++i) {
    const int32_t symbols = 4 + i;
    const auto pick = [&] {
      return static_cast<int32_t>((*rng)() % static_cast<unsigned>(symbols));
    };
    BpeMerge merge{pick(), pick(), symbols, equal_ranks ? i / 3 : i};
    bool known = false;
    for (const BpeMerge& m : merges) known |= m.left == merge.left && m.right == merge.right;
    if (known) merge.left = -2;  // never met
    merges.push_back(merge);
  }
  return merges;
}

TEST(BpeTest, EqualsItsDefinitionForShortAndLongWords) {
  std::mt19937 rng(1);
  int merged_long = 0;
  for (int round = 0; round < 400; ++round) {
    const std::vector<BpeMerge> merges =
        RandomMerges(&rng, 1 + static_cast<int>(rng() % 30), round % 2 == 0);
    const Bpe bpe(merges);
    std::vector<int32_t> word(rng() % 130);
    for (int32_t& s : word) s = static_cast<int32_t>(rng() % 4);
    const std::vector<int32_t> expected = ByDefinition(merges, word);
    std::vector<int32_t> symbols = {7, 7, 7};  // what stands before `begin` is not touched
    symbols.insert(symbols.end(), word.begin(), word.end());
    bpe.MergeFrom(3, &symbols);
    ASSERT_EQ(std::vector<int32_t>(symbols.begin() + 3, symbols.end()), expected)
        << "round " << round;
    ASSERT_EQ(std::vector<int32_t>(symbols.begin(), symbols.begin() + 3),
              (std::vector<int32_t>{7, 7, 7}));
    merged_long += word.size() > 60 && expected.size() < word.size();
  }
  EXPECT_GT(merged_long, 50);
}

TEST(BpeTest, TheLastOfTwoMergesOfAPairCounts) {
  const Bpe bpe(std::vector<BpeMerge>{{0, 1, 4, 0}, {1, 2, 5, 1}, {0, 1, 4, 2}});
  std::vector<int32_t> symbols = {0, 1, 2};
  bpe.MergeFrom(0, &symbols);
  EXPECT_EQ(symbols, (std::vector<int32_t>{0, 5}));
}

TEST(BpeTest, LongRunsStayFarFromQuadratic) {
  // A quadratic loop would take some 10^12 steps here.
  std::vector<BpeMerge> merges;
  for (int32_t i = 0; i < 12; ++i) merges.push_back({i, i, i + 1, i});
  const Bpe bpe(merges);
  std::vector<int32_t> symbols(1 << 20, 0);
  bpe.MergeFrom(0, &symbols);
  EXPECT_EQ(symbols, std::vector<int32_t>(1 << 8, 12));
}

}  // namespace
}  // namespace verbatim::model
