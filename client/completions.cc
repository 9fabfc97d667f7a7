// Distinct completions and their first split.
#include "client/completions.h"

#include <algorithm>

namespace verbatim::client {
namespace {

// Bytes that both begin with, cut back to the start of a UTF-8 character.
int64_t SharedBytes(const std::string& a, const std::string& b) {
  auto shared =
      static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
  const auto continues = [](const std::string& text, size_t at) {
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
  };
  while (shared > 0 && (continues(a, shared) || continues(b, shared))) --shared;
  return static_cast<int64_t>(shared);
}

}  // namespace

std::optional<int64_t> FirstSplit(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const auto [in_a, in_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  if (in_a == a.end() && in_b == b.end()) return std::nullopt;
  return in_a - a.begin();
}

void Completions::Add(const std::string& text, const std::vector<int32_t>& token_ids,
                      const std::string& logits_sha256) {
  ++answers_;
  ++hashes_[logits_sha256];
  const auto order = static_cast<int64_t>(by_tokens_.size());
  auto [it, inserted] = by_tokens_.try_emplace(token_ids, Entry{{text, token_ids}, order});
  ++it->second.distinct.count;
  ++it->second.distinct.hashes[logits_sha256];
}

std::optional<int64_t> Completions::first_split() const {
  // The map is in lexicographic order, in which the pair that shares least stands side by side.
  std::optional<int64_t> first;
  const std::vector<int32_t>* previous = nullptr;
  for (const auto& [tokens, entry] : by_tokens_) {
    if (previous != nullptr) {
      const auto split = FirstSplit(*previous, tokens);
      if (split.has_value() && (!first.has_value() || *split < *first)) first = split;
    }
    previous = &tokens;
  }
  return first;
}

std::optional<std::pair<Completions::Distinct, Completions::Distinct>> Completions::FirstSplitPair()
    const {
  const std::vector<Distinct> distinct = ByFrequency();
  if (distinct.size() < 2) return std::nullopt;
  // All share the tokens before the earliest split, and at most one side of it is the most frequent
  // completion: another one leaves that one there.
  const auto other =
      std::min_element(distinct.begin() + 1, distinct.end(),
                       [](const Distinct& a, const Distinct& b) { return *a.split < *b.split; });
  return std::pair(distinct.front(), *other);
}

std::vector<Completions::Distinct> Completions::ByFrequency() const {
  std::vector<const Entry*> entries;
  for (const auto& [tokens, entry] : by_tokens_) entries.push_back(&entry);
  std::sort(entries.begin(), entries.end(), [](const Entry* a, const Entry* b) {
    if (a->distinct.count != b->distinct.count) return a->distinct.count > b->distinct.count;
    return a->order < b->order;
  });
  std::vector<Distinct> out;
  for (const Entry* entry : entries) {
    out.push_back(entry->distinct);
    if (out.size() == 1) continue;
    out.back().split = FirstSplit(out.front().token_ids, out.back().token_ids);
    out.back().split_byte = SharedBytes(out.front().text, out.back().text);
  }
  return out;
}

}  // namespace verbatim::client
