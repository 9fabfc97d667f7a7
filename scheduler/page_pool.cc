// The fixed set of KV pages with their reference counts.
#include "scheduler/page_pool.h"

#include "absl/strings/str_cat.h"

namespace verbatim::scheduler {

PagePool::PagePool(int64_t num_pages) : refs_(num_pages, 0) {
  free_.reserve(num_pages);
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<PageId>(page));
}

PageId PagePool::Take() {
  const PageId page = free_.back();
  free_.pop_back();
  refs_[page] = 1;
  return page;
}

absl::Status PagePool::CheckIntegrity(std::vector<bool>* is_free) const {
  is_free->assign(refs_.size(), false);
  for (const PageId page : free_) {
    if (page < 0 || page >= num_pages()) {
      return absl::InternalError(absl::StrCat("free list holds page ", page, " outside the pool"));
    }
    if ((*is_free)[page]) {
      return absl::InternalError(absl::StrCat("page ", page, " is on the free list twice"));
    }
    (*is_free)[page] = true;
    if (refs_[page] != 0) {
      return absl::InternalError(absl::StrCat("free page ", page, " has ", refs_[page], " refs"));
    }
  }
  for (size_t page = 0; page < refs_.size(); ++page) {
    if (refs_[page] < 0) {
      return absl::InternalError(absl::StrCat("page ", page, " has ", refs_[page], " refs"));
    }
  }
  return absl::OkStatus();
}

}  // namespace verbatim::scheduler
