// How much a set of answers to one prompt differ: distinct texts, distinct logit bits, first split.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace verbatim::client {

// Index of the first token at which `a` and `b` differ; where one is a prefix of the other, its
// length. nullopt when they are equal.
std::optional<int64_t> FirstSplit(const std::vector<int32_t>& a, const std::vector<int32_t>& b);

// Answers of one prompt. Two answers are the same completion when their token ids are equal.
class Completions {
 public:
  struct Distinct {
    std::string text;
    std::vector<int32_t> token_ids;
    int64_t count = 0;
    std::map<std::string, int64_t> hashes;  // logit hash to number of answers
    std::optional<int64_t> split;  // against the most frequent completion; nullopt for that one
    int64_t split_byte = 0;        // bytes of text that it shares with the most frequent one
  };

  void Add(const std::string& text, const std::vector<int32_t>& token_ids,
           const std::string& logits_sha256);

  int64_t answers() const { return answers_; }
  int64_t unique_completions() const { return static_cast<int64_t>(by_tokens_.size()); }
  int64_t unique_logit_hashes() const { return static_cast<int64_t>(hashes_.size()); }
  // The earliest token at which any two answers differ.
  std::optional<int64_t> first_split() const;
  // The most frequent completion and the most frequent of those that leave it earliest, which is at
  // first_split(). nullopt unless two answers differ.
  std::optional<std::pair<Distinct, Distinct>> FirstSplitPair() const;
  // Most frequent first; among equals the one seen first.
  std::vector<Distinct> ByFrequency() const;

 private:
  struct Entry {
    Distinct distinct;
    int64_t order;
  };

  int64_t answers_ = 0;
  std::map<std::vector<int32_t>, Entry> by_tokens_;
  std::map<std::string, int64_t> hashes_;
};

}  // namespace verbatim::client
