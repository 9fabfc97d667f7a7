// The fixed set of KV pages with their reference counts.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace verbatim::scheduler {

using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

// A page is free (on the free list), in use (refs >= 1) or idle (refs 0 but kept by its owner, who
// returns it with Free()). Which free page is handed out next depends on the calls alone: last
// freed, first taken.
class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t num_pages() const { return static_cast<int64_t>(refs_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int32_t refs(PageId page) const { return refs_[page]; }

  // A free page with one reference; num_free() must be > 0.
  PageId Take();

  // One more reference; an idle page comes into use.
  void Ref(PageId page) { ++refs_[page]; }

  // One reference less; returns how many are left. At 0 the page is idle, not free.
  int32_t Unref(PageId page) { return --refs_[page]; }

  // Puts an idle page on the free list.
  void Free(PageId page) { free_.push_back(page); }

  // INTERNAL when a page is on the free list twice or while referenced, or a count is negative.
  // `is_free` receives one flag a page.
  absl::Status CheckIntegrity(std::vector<bool>* is_free) const;

 private:
  std::vector<int32_t> refs_;
  std::vector<PageId> free_;
};

}  // namespace verbatim::scheduler
