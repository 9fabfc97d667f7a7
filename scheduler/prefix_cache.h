// KV pages by content: hands out pages, shares full ones between equal prefixes, evicts idle ones.
//
// Contents form a tree: below one root per cache salt, a node stands for one page of token ids
// after the content of its parent. Nodes are found by SHA-256 chain and then compared in token ids
// and parent, so that equal digests alone never make a hit. A node holds one page per numerics
// class ("variant"): equal content, equal class, equal bits. A second page with the content and
// class of a variant stays with its sequence ("spare") and takes the variant's place if that is
// evicted.
//
// Only full pages enter; they are never written again until they are free.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "scheduler/page_digest.h"
#include "scheduler/page_pool.h"
#include "scheduler/step_plan.h"

namespace verbatim::scheduler {

class PrefixCache {
 public:
  PrefixCache(int64_t num_pages, int64_t page_tokens);

  // Pages that Take() can hand out: free ones and idle cached ones.
  int64_t available() const { return pool_.num_free() + num_idle_; }
  int64_t num_free() const { return pool_.num_free(); }
  int64_t num_idle() const { return num_idle_; }
  int64_t num_pages() const { return pool_.num_pages(); }
  int32_t refs(PageId page) const { return pool_.refs(page); }

  // A private page with one reference; available() must be > 0. Takes a free page, otherwise evicts
  // the least recently used idle page that has no idle page below it (children before parents).
  PageId Take();

  void Ref(PageId page);

  // Gives back one reference. A cached page without references becomes idle, any other free.
  // Release the pages of a sequence last to first, so that a prefix outlives its continuations.
  void Release(PageId page);

  // Cached pages for the longest prefix of full pages, at most digests.size(). digests[i] names
  // page i of `tokens` below `root`. A reader of a strong class gets pages of exactly this class. A
  // throughput reader gets any page, at each depth by preference: the strong class of the page
  // before, the lowest strong class, throughput: a history that stays strong keeps what it writes
  // in strong steps useful to everyone. Takes no references.
  std::vector<PageId> Find(const std::string& salt, const Digest& root,
                           absl::Span<const Digest> digests, absl::Span<const int32_t> tokens,
                           NumericsClass reader) const;

  // Offers a full private page to others. `parent`: the page before it in the same sequence,
  // kNoPage for the first. `written_class`: strong only if this page and all before it were written
  // by that class. Nothing happens when the parent itself was never published or was withdrawn, or
  // when the digest is taken by other content.
  void Publish(PageId page, PageId parent, const std::string& salt, const Digest& root,
               const Digest& digest, absl::Span<const int32_t> tokens, NumericsClass written_class);

  // Withdraws all pages of the content that `digests` names (at least one, as for Find) and of
  // everything that continues it: nobody finds them from now on, and their users publish nothing
  // after them. Those in use stay with their users.
  void Withdraw(const std::string& salt, const Digest& root, absl::Span<const Digest> digests,
                absl::Span<const int32_t> tokens);

  // Frees all idle pages.
  void Clear();

  // A page that a sequence may still find or share: it is in the tree, as variant or spare.
  bool published(PageId page) const { return pages_[page].node != kNoNode; }
  bool findable(PageId page) const { return published(page) && !pages_[page].spare; }
  // The class given to Publish(); meaningful while published.
  NumericsClass written_class(PageId page) const { return pages_[page].written_class; }

  absl::Status CheckIntegrity() const;

 private:
  using NodeId = int32_t;
  static constexpr NodeId kNoNode = -1;

  struct PageState {
    NodeId node = kNoNode;
    NumericsClass written_class = kThroughputClass;
    bool spare = false;
    bool idle = false;  // cached, no references
    uint64_t tick = 0;  // of the last use; orders eviction
  };

  struct Node {
    bool in_use = false;
    Digest digest{};
    std::string salt;             // roots only
    std::vector<int32_t> tokens;  // page_tokens ids; empty in a root
    NodeId parent = kNoNode, first_child = kNoNode, next_sibling = kNoNode, prev_sibling = kNoNode;
    std::vector<PageId> variants;  // ascending class, at most one each
    std::vector<PageId> spares;    // each has a variant of its class
    int32_t idle_pages = 0;        // among the variants
    int32_t idle_children = 0;     // children with an idle page in them or below
  };

  NodeId FindRoot(const std::string& salt, const Digest& root) const;
  NodeId FindChild(NodeId parent, const Digest& digest, absl::Span<const int32_t> tokens) const;
  NodeId AddNode(NodeId parent, const Digest& digest);  // kNoNode when the digest is taken
  PageId VariantOf(const Node& node, NumericsClass written_class) const;
  void AddVariant(NodeId node, PageId page);
  void SetIdle(PageId page, bool idle);
  void Detach(PageId page);  // out of the tree; frees the page if it is idle
  void Prune(NodeId node);   // removes the node and its ancestors while nothing needs them
  absl::Status CheckNode(NodeId id) const;

  const int64_t page_tokens_;
  PagePool pool_;
  std::vector<PageState> pages_;
  std::vector<Node> nodes_;
  std::vector<NodeId> free_nodes_;
  std::map<Digest, NodeId> index_;
  std::set<std::pair<uint64_t, PageId>> evictable_;  // idle, nothing idle below; by tick
  int64_t num_idle_ = 0;
  uint64_t tick_ = 0;
};

}  // namespace verbatim::scheduler
