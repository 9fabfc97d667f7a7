// Walks the tree of page contents and compares every derived count with what it is derived from.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "scheduler/prefix_cache.h"

namespace verbatim::scheduler {
namespace {

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InternalError(absl::StrCat("prefix cache: ", parts...));
}

}  // namespace

absl::Status PrefixCache::CheckIntegrity() const {
  std::vector<bool> is_free;
  if (absl::Status status = pool_.CheckIntegrity(&is_free); !status.ok()) return status;
  int64_t idle = 0, attached = 0;
  for (PageId page = 0; page < num_pages(); ++page) {
    const PageState& state = pages_[page];
    if (pool_.refs(page) == 0 && is_free[page] == state.idle) {
      return Broken("unreferenced page ", page,
                    is_free[page] ? " is both free and idle" : " leaked");
    }
    if (state.idle && (pool_.refs(page) != 0 || state.node == kNoNode || state.spare)) {
      return Broken("idle page ", page, " is referenced or cannot be found");
    }
    idle += state.idle;
    if (state.node == kNoNode) continue;
    ++attached;
    if (is_free[page]) return Broken("free page ", page, " is published");
    const Node& node = nodes_[state.node];
    const std::vector<PageId>& list = state.spare ? node.spares : node.variants;
    if (!node.in_use || std::count(list.begin(), list.end(), page) != 1) {
      return Broken("page ", page, " is not listed in its node");
    }
    const bool evictable = evictable_.contains({state.tick, page});
    if (evictable != (state.idle && node.idle_children == 0)) {
      return Broken("page ", page,
                    evictable ? " is evictable but must not be" : " is not evictable");
    }
  }
  if (idle != num_idle_) return Broken("counts ", num_idle_, " idle pages, has ", idle);
  for (const auto& [tick, page] : evictable_) {
    if (!pages_[page].idle || pages_[page].tick != tick) {
      return Broken("eviction order holds a stale entry of page ", page);
    }
  }
  int64_t listed = 0, in_use = 0;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    if (!nodes_[id].in_use) continue;
    ++in_use;
    listed += nodes_[id].variants.size() + nodes_[id].spares.size();
    if (absl::Status status = CheckNode(static_cast<NodeId>(id)); !status.ok()) return status;
  }
  if (listed != attached) return Broken(listed, " pages listed in nodes, ", attached, " attached");
  if (in_use != static_cast<int64_t>(index_.size()) ||
      nodes_.size() != free_nodes_.size() + index_.size()) {
    return Broken("index has ", index_.size(), " nodes of ", in_use, " in use");
  }
  return absl::OkStatus();
}

absl::Status PrefixCache::CheckNode(NodeId id) const {
  const Node& node = nodes_[id];
  const auto indexed = index_.find(node.digest);
  if (indexed == index_.end() || indexed->second != id) return Broken("node ", id, " not indexed");
  if (node.tokens.size() != (node.parent == kNoNode ? 0 : static_cast<size_t>(page_tokens_))) {
    return Broken("node ", id, " has ", node.tokens.size(), " tokens");
  }
  int32_t idle_pages = 0, idle_children = 0;
  for (size_t i = 0; i < node.variants.size(); ++i) {
    const PageState& state = pages_[node.variants[i]];
    idle_pages += state.idle;
    if (state.node != id || state.spare) return Broken("node ", id, " lists a foreign variant");
    if (i > 0 && pages_[node.variants[i - 1]].written_class >= state.written_class) {
      return Broken("variants of node ", id, " out of order");
    }
  }
  for (const PageId spare : node.spares) {
    const PageState& state = pages_[spare];
    if (state.node != id || !state.spare) return Broken("node ", id, " lists a foreign spare");
    if (pool_.refs(spare) != 1) return Broken("spare page ", spare, " is not of one sequence");
    if (VariantOf(node, state.written_class) == kNoPage) {
      return Broken("spare page ", spare, " has no variant of its class");
    }
  }
  NodeId previous = kNoNode;
  for (NodeId child = node.first_child; child != kNoNode; child = nodes_[child].next_sibling) {
    if (nodes_[child].parent != id || nodes_[child].prev_sibling != previous) {
      return Broken("child ", child, " of node ", id, " is linked wrongly");
    }
    idle_children += nodes_[child].idle_pages + nodes_[child].idle_children > 0;
    previous = child;
  }
  if (idle_pages != node.idle_pages || idle_children != node.idle_children) {
    return Broken("node ", id, " counts ", node.idle_pages, " idle pages and ", node.idle_children,
                  " idle children, has ", idle_pages, " and ", idle_children);
  }
  if (node.variants.empty() && node.spares.empty() && node.first_child == kNoNode) {
    return Broken("node ", id, " is kept for nothing");
  }
  return absl::OkStatus();
}

}  // namespace verbatim::scheduler
