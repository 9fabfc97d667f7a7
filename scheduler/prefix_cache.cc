// Tree of page contents with variants per numerics class, reference counts and ordered eviction.
#include "scheduler/prefix_cache.h"

#include <algorithm>
#include <cstddef>

namespace verbatim::scheduler {

PrefixCache::PrefixCache(int64_t num_pages, int64_t page_tokens)
    : page_tokens_(page_tokens), pool_(num_pages), pages_(num_pages) {}

PageId PrefixCache::Take() {
  if (pool_.num_free() == 0) Detach(evictable_.begin()->second);
  return pool_.Take();
}

void PrefixCache::Ref(PageId page) {
  pool_.Ref(page);
  if (pages_[page].idle) SetIdle(page, false);
}

void PrefixCache::Release(PageId page) {
  if (pool_.Unref(page) > 0) return;
  PageState& state = pages_[page];
  if (state.node != kNoNode && !state.spare) {
    SetIdle(page, true);
    return;
  }
  if (state.spare) {
    // Its content was in use until now, which is what the variant's place in the order must say.
    const PageId twin = VariantOf(nodes_[state.node], state.written_class);
    if (pages_[twin].idle) {
      SetIdle(twin, false);
      SetIdle(twin, true);
    }
    Detach(page);
  }
  pool_.Free(page);
}

std::vector<PageId> PrefixCache::Find(const std::string& salt, const Digest& root,
                                      absl::Span<const Digest> digests,
                                      absl::Span<const int32_t> tokens,
                                      NumericsClass reader) const {
  std::vector<PageId> found;
  NodeId node = FindRoot(salt, root);
  NumericsClass previous = reader;
  for (size_t i = 0; i < digests.size() && node != kNoNode; ++i) {
    node = FindChild(node, digests[i], tokens.subspan(i * page_tokens_, page_tokens_));
    if (node == kNoNode) break;
    const std::vector<PageId>& variants = nodes_[node].variants;
    PageId page = kNoPage;
    if (previous != kThroughputClass) page = VariantOf(nodes_[node], previous);
    if (page == kNoPage && reader == kThroughputClass && !variants.empty()) {
      // Ascending by class, so the throughput variant is first and the lowest strong one follows.
      const bool skip_first =
          variants.size() > 1 && pages_[variants[0]].written_class == kThroughputClass;
      page = variants[skip_first ? 1 : 0];
    }
    if (page == kNoPage) break;
    previous = pages_[page].written_class;
    found.push_back(page);
  }
  return found;
}

void PrefixCache::Publish(PageId page, PageId parent, const std::string& salt, const Digest& root,
                          const Digest& digest, absl::Span<const int32_t> tokens,
                          NumericsClass written_class) {
  NodeId above = parent == kNoPage ? FindRoot(salt, root) : pages_[parent].node;
  if (above == kNoNode && parent == kNoPage) {
    above = AddNode(kNoNode, root);
    if (above != kNoNode) nodes_[above].salt = salt;
  }
  if (above == kNoNode) return;
  NodeId node = FindChild(above, digest, tokens);
  if (node == kNoNode) {
    node = AddNode(above, digest);
    if (node == kNoNode) return Prune(above);
    nodes_[node].tokens.assign(tokens.begin(), tokens.end());
  }
  PageState& state = pages_[page];
  state.node = node;
  state.written_class = written_class;
  state.spare = VariantOf(nodes_[node], written_class) != kNoPage;
  if (state.spare) {
    nodes_[node].spares.push_back(page);
  } else {
    AddVariant(node, page);
  }
}

void PrefixCache::Withdraw(const std::string& salt, const Digest& root,
                           absl::Span<const Digest> digests, absl::Span<const int32_t> tokens) {
  NodeId top = FindRoot(salt, root);
  for (size_t i = 0; i < digests.size() && top != kNoNode; ++i) {
    top = FindChild(top, digests[i], tokens.subspan(i * page_tokens_, page_tokens_));
  }
  if (top == kNoNode) return;
  std::vector<NodeId> subtree = {top};
  std::vector<PageId> victims;
  for (size_t i = 0; i < subtree.size(); ++i) {
    const Node& node = nodes_[subtree[i]];
    // Spares first: otherwise they would take the place of the variant that leaves.
    victims.insert(victims.end(), node.spares.begin(), node.spares.end());
    victims.insert(victims.end(), node.variants.begin(), node.variants.end());
    for (NodeId child = node.first_child; child != kNoNode; child = nodes_[child].next_sibling) {
      subtree.push_back(child);
    }
  }
  for (const PageId victim : victims) Detach(victim);
}

void PrefixCache::Clear() {
  while (!evictable_.empty()) Detach(evictable_.begin()->second);
}

PrefixCache::NodeId PrefixCache::FindRoot(const std::string& salt, const Digest& root) const {
  const auto it = index_.find(root);
  if (it == index_.end()) return kNoNode;
  const Node& node = nodes_[it->second];
  return node.parent == kNoNode && node.salt == salt ? it->second : kNoNode;
}

PrefixCache::NodeId PrefixCache::FindChild(NodeId parent, const Digest& digest,
                                           absl::Span<const int32_t> tokens) const {
  const auto it = index_.find(digest);
  if (it == index_.end()) return kNoNode;
  const Node& node = nodes_[it->second];
  return node.parent == parent && absl::MakeConstSpan(node.tokens) == tokens ? it->second : kNoNode;
}

PrefixCache::NodeId PrefixCache::AddNode(NodeId parent, const Digest& digest) {
  NodeId id = free_nodes_.empty() ? static_cast<NodeId>(nodes_.size()) : free_nodes_.back();
  if (!index_.try_emplace(digest, id).second) return kNoNode;
  if (free_nodes_.empty()) {
    nodes_.emplace_back();
  } else {
    free_nodes_.pop_back();
  }
  Node& node = nodes_[id];
  node = Node();
  node.in_use = true;
  node.digest = digest;
  node.parent = parent;
  if (parent != kNoNode) {
    node.next_sibling = nodes_[parent].first_child;
    if (node.next_sibling != kNoNode) nodes_[node.next_sibling].prev_sibling = id;
    nodes_[parent].first_child = id;
  }
  return id;
}

PageId PrefixCache::VariantOf(const Node& node, NumericsClass written_class) const {
  for (const PageId page : node.variants) {
    if (pages_[page].written_class == written_class) return page;
  }
  return kNoPage;
}

void PrefixCache::AddVariant(NodeId id, PageId page) {
  std::vector<PageId>& variants = nodes_[id].variants;
  const auto place = std::find_if(variants.begin(), variants.end(), [&](PageId other) {
    return pages_[other].written_class > pages_[page].written_class;
  });
  variants.insert(place, page);
}

void PrefixCache::SetIdle(PageId page, bool idle) {
  PageState& state = pages_[page];
  const int32_t change = idle ? 1 : -1;
  Node* node = &nodes_[state.node];
  if (idle) state.tick = ++tick_;
  if (node->idle_children == 0) {
    if (idle) {
      evictable_.emplace(state.tick, page);
    } else {
      evictable_.erase({state.tick, page});
    }
  }
  state.idle = idle;
  num_idle_ += change;
  bool had_idle = node->idle_pages + node->idle_children > 0;
  node->idle_pages += change;
  // While "something idle in or below" changes for a node, its parent has one such child more or
  // less, which may open or close the way to the parent's own idle pages.
  while (had_idle != (node->idle_pages + node->idle_children > 0) && node->parent != kNoNode) {
    node = &nodes_[node->parent];
    had_idle = node->idle_pages + node->idle_children > 0;
    node->idle_children += change;
    const bool closed = idle && node->idle_children == 1;
    const bool opened = !idle && node->idle_children == 0;
    if (!closed && !opened) continue;
    for (const PageId variant : node->variants) {
      if (!pages_[variant].idle) continue;
      if (closed) {
        evictable_.erase({pages_[variant].tick, variant});
      } else {
        evictable_.emplace(pages_[variant].tick, variant);
      }
    }
  }
}

void PrefixCache::Detach(PageId page) {
  PageState& state = pages_[page];
  const NodeId id = state.node;
  const bool was_idle = state.idle;
  if (was_idle) SetIdle(page, false);
  Node& node = nodes_[id];
  if (state.spare) {
    node.spares.erase(std::find(node.spares.begin(), node.spares.end(), page));
  } else {
    node.variants.erase(std::find(node.variants.begin(), node.variants.end(), page));
    const auto heir = std::find_if(node.spares.begin(), node.spares.end(), [&](PageId spare) {
      return pages_[spare].written_class == state.written_class;
    });
    if (heir != node.spares.end()) {
      const PageId variant = *heir;
      node.spares.erase(heir);
      pages_[variant].spare = false;
      AddVariant(id, variant);
    }
  }
  state = PageState();
  Prune(id);
  if (was_idle) pool_.Free(page);
}

void PrefixCache::Prune(NodeId id) {
  while (id != kNoNode) {
    Node& node = nodes_[id];
    if (!node.variants.empty() || !node.spares.empty() || node.first_child != kNoNode) return;
    const NodeId parent = node.parent;
    if (node.next_sibling != kNoNode) nodes_[node.next_sibling].prev_sibling = node.prev_sibling;
    if (node.prev_sibling != kNoNode) {
      nodes_[node.prev_sibling].next_sibling = node.next_sibling;
    } else if (parent != kNoNode) {
      nodes_[parent].first_child = node.next_sibling;
    }
    index_.erase(node.digest);
    node = Node();
    free_nodes_.push_back(id);
    id = parent;
  }
}

}  // namespace verbatim::scheduler
