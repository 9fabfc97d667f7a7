// The tree of page contents by itself: collisions, eviction order, spares, digests.
#include "scheduler/prefix_cache.h"

#include <map>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Text = std::vector<int32_t>;

// A sequence as the cache sees it: tokens, digests, and the pages it holds.
struct Holder {
  std::string salt;
  Text tokens;
  Digest root;
  std::vector<Digest> digests;
  std::vector<PageId> pages;
  std::vector<NumericsClass> classes;  // as published
};

// `digest_bits` < 256 keeps only so many bits of each digest, to force collisions.
Holder MakeHolder(std::string salt, Text tokens, int64_t page_tokens, int digest_bits = 256) {
  const auto weaken = [&](Digest digest) {
    if (digest_bits >= 256) return digest;
    const uint8_t low = digest[0] & static_cast<uint8_t>((1 << digest_bits) - 1);
    digest.fill(0);
    digest[0] = low;
    return digest;
  };
  Holder holder{.salt = std::move(salt), .tokens = std::move(tokens)};
  holder.root = weaken(SaltDigest(holder.salt));
  Digest parent = holder.root;
  const absl::Span<const int32_t> all = holder.tokens;
  for (size_t end = page_tokens; end <= all.size(); end += page_tokens) {
    parent = weaken(PageDigest(parent, all.subspan(end - page_tokens, page_tokens)));
    holder.digests.push_back(parent);
  }
  return holder;
}

std::vector<PageId> Find(const PrefixCache& cache, const Holder& holder, NumericsClass reader) {
  return cache.Find(holder.salt, holder.root, holder.digests, holder.tokens, reader);
}

// Takes and publishes pages up to the holder's last full one.
void Fill(PrefixCache& cache, Holder& holder, int64_t page_tokens, NumericsClass written_class) {
  for (size_t i = holder.pages.size(); i < holder.digests.size(); ++i) {
    holder.pages.push_back(cache.Take());
    holder.classes.push_back(written_class);
    cache.Publish(holder.pages[i], i == 0 ? kNoPage : holder.pages[i - 1], holder.salt, holder.root,
                  holder.digests[i],
                  absl::MakeConstSpan(holder.tokens).subspan(i * page_tokens, page_tokens),
                  written_class);
  }
}

void ReleaseAll(PrefixCache& cache, Holder& holder) {
  for (size_t i = holder.pages.size(); i > 0; --i) cache.Release(holder.pages[i - 1]);
  holder.pages.clear();
}

TEST(PageDigest, IsSha256OverParentAndLittleEndianTokens) {
  // Reference values by Python's hashlib.
  const auto hex = [](const Digest& digest) {
    std::string text;
    for (const uint8_t byte : digest) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  };
  EXPECT_EQ(hex(SaltDigest("")),
            "7c277b2f05649d6cb6e0e3041877b5970b4284935e541fcb93397bcfa7b4dcb9");
  EXPECT_EQ(hex(PageDigest(SaltDigest(""), Text{1, 256, -1})),
            "bcb8b7716b653fdf894cd51ba885d246b41e76d016f609e38eb0c1f1ac5e0fd6");
  EXPECT_NE(SaltDigest("a"), SaltDigest("b"));
}

TEST(PrefixCache, EvictsLeastRecentlyUsedFirstAndChildrenBeforeParents) {
  PrefixCache cache(4, 2);
  Holder a = MakeHolder("", {1, 1, 2, 2}, 2), b = MakeHolder("", {5, 5, 6, 6}, 2);
  Fill(cache, a, 2, 0);
  Fill(cache, b, 2, 0);
  const std::vector<PageId> pa = a.pages, pb = b.pages;
  ReleaseAll(cache, a);
  ReleaseAll(cache, b);
  // a's parent page is used once more and so is the most recent; its child now is the oldest.
  cache.Ref(pa[0]);
  cache.Release(pa[0]);
  EXPECT_EQ(cache.available(), 4);
  EXPECT_EQ(cache.num_free(), 0);
  EXPECT_EQ(cache.Take(), pa[1]);
  EXPECT_EQ(cache.Take(), pb[1]);
  EXPECT_EQ(cache.Take(), pb[0]);
  EXPECT_EQ(cache.Take(), pa[0]);
  EXPECT_EQ(cache.available(), 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok()) << cache.CheckIntegrity();
}

TEST(PrefixCache, AnOldParentWaitsForItsYoungChild) {
  PrefixCache cache(3, 2);
  Holder a = MakeHolder("", {1, 1, 2, 2}, 2), b = MakeHolder("", {5, 5}, 2);
  Fill(cache, a, 2, 0);
  Fill(cache, b, 2, 0);
  const std::vector<PageId> pa = a.pages, pb = b.pages;
  cache.Release(pa[0]);  // oldest
  cache.Release(pb[0]);
  cache.Release(pa[1]);  // youngest
  EXPECT_EQ(cache.Take(), pb[0]);
  EXPECT_EQ(cache.Take(), pa[1]);
  EXPECT_EQ(cache.Take(), pa[0]);
}

TEST(PrefixCache, SpareTakesThePlaceOfAnEvictedVariant) {
  PrefixCache cache(3, 2);
  Holder a = MakeHolder("", {1, 1}, 2), twin = MakeHolder("", {1, 1}, 2);
  Fill(cache, a, 2, 1);
  Fill(cache, twin, 2, 1);
  const PageId page = a.pages[0], spare = twin.pages[0];
  EXPECT_THAT(Find(cache, a, 1), ElementsAre(page));
  EXPECT_FALSE(cache.findable(spare));
  ReleaseAll(cache, a);
  cache.Clear();
  EXPECT_THAT(Find(cache, a, 1), ElementsAre(spare));
  ReleaseAll(cache, twin);
  EXPECT_EQ(cache.num_idle(), 1);
  EXPECT_TRUE(cache.CheckIntegrity().ok()) << cache.CheckIntegrity();
}

TEST(PrefixCache, SpareIsFreedWhileItsVariantStays) {
  PrefixCache cache(3, 2);
  Holder a = MakeHolder("", {1, 1}, 2), twin = MakeHolder("", {1, 1}, 2);
  Fill(cache, a, 2, 1);
  Fill(cache, twin, 2, 1);
  ReleaseAll(cache, twin);
  EXPECT_EQ(cache.num_idle(), 0);
  EXPECT_EQ(cache.num_free(), 2);
  EXPECT_EQ(Find(cache, a, 1), a.pages);
}

TEST(PrefixCache, UseOfASpareCountsAsUseOfItsContent) {
  PrefixCache cache(3, 2);
  Holder a = MakeHolder("", {1, 1}, 2), twin = MakeHolder("", {1, 1}, 2),
         b = MakeHolder("", {5, 5}, 2);
  Fill(cache, a, 2, 1);
  Fill(cache, twin, 2, 1);
  Fill(cache, b, 2, 1);
  const PageId page = b.pages[0];
  ReleaseAll(cache, a);
  ReleaseAll(cache, b);
  ReleaseAll(cache, twin);
  cache.Take();
  EXPECT_EQ(cache.Take(), page);
}

TEST(PrefixCache, ThroughputReaderKeepsAStrongClassWhileItCan) {
  PrefixCache cache(8, 1);
  Holder one = MakeHolder("", {1, 2, 3}, 1), two = MakeHolder("", {1}, 1),
         zero = MakeHolder("", {1, 2, 3, 4}, 1);
  Fill(cache, zero, 1, 0);
  Fill(cache, two, 1, 2);
  Fill(cache, one, 1, 1);
  EXPECT_THAT(Find(cache, zero, 0),
              ElementsAre(one.pages[0], one.pages[1], one.pages[2], zero.pages[3]));
  EXPECT_THAT(Find(cache, zero, 2), ElementsAre(two.pages[0]));
  EXPECT_THAT(Find(cache, zero, 3), IsEmpty());
}

TEST(PrefixCache, WithdrawReachesEveryVariantAndContinuation) {
  PrefixCache cache(10, 1);
  Holder a = MakeHolder("", {1, 2, 3}, 1), b = MakeHolder("", {1, 2, 4}, 1),
         twin = MakeHolder("", {1, 2, 3}, 1);
  Fill(cache, a, 1, 0);
  Fill(cache, b, 1, 1);
  Fill(cache, twin, 1, 0);
  ReleaseAll(cache, a);
  cache.Withdraw(a.salt, a.root, absl::MakeConstSpan(a.digests).subspan(0, 2), a.tokens);
  EXPECT_TRUE(cache.CheckIntegrity().ok()) << cache.CheckIntegrity();
  EXPECT_EQ(Find(cache, a, 0).size(), 1u);
  EXPECT_EQ(Find(cache, b, 1).size(), 1u);
  // Who held a withdrawn page publishes nothing after it.
  const PageId page = cache.Take();
  cache.Publish(page, b.pages[2], b.salt, b.root, PageDigest(b.digests[2], Text{9}), Text{9}, 1);
  EXPECT_FALSE(cache.published(page));
  ReleaseAll(cache, twin);
  ReleaseAll(cache, b);
  cache.Release(page);
  EXPECT_EQ(cache.available(), 10);
  EXPECT_EQ(cache.num_idle(), 2);  // position 0 in classes 0 and 1
}

// Random sequences over few tokens and few digests. The model knows what every page holds, and an
// eviction is right if no idle page lies below the one evicted.
class CacheModel {
 public:
  CacheModel(uint64_t seed, int digest_bits)
      : random_(seed), digest_bits_(digest_bits), cache_(kPages, kPageTokens) {}

  void Step() {
    if (holders_.empty() || random_() % 3 != 0) {
      Start();
    } else {
      const size_t i = random_() % holders_.size();
      ReleaseAll(cache_, holders_[i]);
      holders_.erase(holders_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (random_() % 40 == 0) cache_.Clear();
    EXPECT_TRUE(cache_.CheckIntegrity().ok()) << cache_.CheckIntegrity();
  }

  int64_t hits = 0, evictions = 0;

 private:
  static constexpr int64_t kPages = 16, kPageTokens = 2;
  // More than one digest bit can tell apart.
  static constexpr const char* kSalts[] = {"", "x", "y"};

  struct Content {
    std::string salt;
    Text prefix;  // up to the end of the page
    NumericsClass written_class = 0;
  };

  void Start() {
    Text tokens(random_() % 10);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % 2);
    Holder holder = MakeHolder(kSalts[random_() % 3], tokens, kPageTokens, digest_bits_);
    const NumericsClass reader = static_cast<NumericsClass>(random_() % 3);
    NumericsClass written = static_cast<NumericsClass>(random_() % 3);
    if (reader != 0) written = reader;
    for (const PageId page : Find(cache_, holder, reader)) {
      ++hits;
      const size_t end = (holder.pages.size() + 1) * kPageTokens;
      EXPECT_EQ(contents_[page].salt, holder.salt);
      EXPECT_EQ(contents_[page].prefix, Text(tokens.begin(), tokens.begin() + end));
      if (reader != 0) {
        EXPECT_EQ(contents_[page].written_class, reader);
      }
      cache_.Ref(page);
      holder.pages.push_back(page);
      if (contents_[page].written_class != written) written = 0;
    }
    for (size_t i = holder.pages.size(); i < holder.digests.size(); ++i) {
      if (cache_.available() == 0) break;
      const PageId page = Take();
      contents_[page] = {holder.salt, Text(tokens.begin(), tokens.begin() + (i + 1) * kPageTokens),
                         written};
      cache_.Publish(
          page, i == 0 ? kNoPage : holder.pages[i - 1], holder.salt, holder.root, holder.digests[i],
          absl::MakeConstSpan(holder.tokens).subspan(i * kPageTokens, kPageTokens), written);
      holder.pages.push_back(page);
    }
    holders_.push_back(std::move(holder));
  }

  PageId Take() {
    std::map<PageId, Content> idle;
    for (PageId page = 0; page < kPages; ++page) {
      if (cache_.refs(page) == 0 && cache_.published(page)) idle[page] = contents_[page];
    }
    const bool must_evict = cache_.num_free() == 0;
    const PageId page = cache_.Take();
    EXPECT_EQ(must_evict, idle.contains(page));
    if (!must_evict || !idle.contains(page)) return page;
    ++evictions;
    const Content& gone = idle[page];
    for (const auto& [other, content] : idle) {
      const bool below = content.salt == gone.salt && content.prefix.size() > gone.prefix.size() &&
                         std::equal(gone.prefix.begin(), gone.prefix.end(), content.prefix.begin());
      EXPECT_FALSE(below) << "page " << page << " was evicted before page " << other;
    }
    return page;
  }

  std::mt19937_64 random_;
  const int digest_bits_;
  PrefixCache cache_;
  std::vector<Holder> holders_;
  std::map<PageId, Content> contents_;
};

class PrefixCacheProperty : public testing::TestWithParam<int> {};

TEST_P(PrefixCacheProperty, HitsHoldTheAskedContentWhateverTheDigests) {
  int64_t hits = 0, evictions = 0;
  for (uint64_t seed = 1; seed <= 200 && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    CacheModel model(seed, GetParam());
    for (int step = 0; step < 200 && !HasFailure(); ++step) model.Step();
    hits += model.hits;
    evictions += model.evictions;
  }
  // With 0 bits even the root has the digest of its children, so nothing can be cached.
  EXPECT_GT(hits, GetParam() == 0 ? -1 : 100);
  EXPECT_GT(evictions, GetParam() == 0 ? -1 : 100);
}

INSTANTIATE_TEST_SUITE_P(DigestBits, PrefixCacheProperty, testing::Values(0, 1, 2, 4, 256));

}  // namespace
}  // namespace verbatim::scheduler
