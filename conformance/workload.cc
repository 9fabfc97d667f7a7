// The requests whose bits are compared, and those that share the machine with them.
#include "conformance/workload.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace verbatim::conformance {
namespace {

constexpr int32_t kFirstOrdinaryToken = 10;
constexpr int kCommonPrefix = 96;

constexpr char kText[] =
    "The harbour master kept two ledgers. In the first he wrote what every captain told him: the "
    "cargo, the port of departure, the number of hands. In the second he wrote what he saw from "
    "the window of the customs house, and he never showed it to anyone. When the two agreed he "
    "drew a small circle in the margin; when they did not, he left the margin empty and waited. "
    "Most ships that had an empty margin came back within the year under another name. A young "
    "clerk once asked him why he did not report them. \"Because a report is an opinion,\" he said, "
    "\"and a ledger is a measurement. If you want to know whether the sea repeats itself, write "
    "down the same thing every day at the same hour, and change nothing but the date.\" The clerk "
    "thought this was a foolish answer until the winter of the long fog, when for nineteen days no "
    "ship was seen at all and the second ledger held nineteen lines that were equal letter for "
    "letter. On the twentieth day one word was different. It took the whole office until evening "
    "to find it. Write a short letter to the clerk in which you explain how to boil an egg, how to "
    "sharpen a pencil, how to add a column of figures from the top and from the bottom, and why "
    "the two sums may differ when the figures are rounded after every step. List the planets, the "
    "months with thirty days, and the first ten prime numbers: 2, 3, 5, 7, 11, 13, 17, 19, 23, 29. "
    "Then translate the last sentence into French and count its vowels. ";

}  // namespace

Workload::Workload(const WorkloadOptions& options, const model::Tokenizer& tokenizer,
                   bool random_ids)
    : options_(options) {
  if (!random_ids) {
    absl::StatusOr<std::vector<int32_t>> text =
        tokenizer.Encode(kText, {.add_special_tokens = false, .parse_special = false});
    if (text.ok()) {
      std::copy_if(text->begin(), text->end(), std::back_inserter(tokens_),
                   [](int32_t token) { return token >= kFirstOrdinaryToken; });
    }
  }
  if (tokens_.empty()) {
    Random random(7);
    for (int i = 0; i < 4096; ++i) {
      tokens_.push_back(kFirstOrdinaryToken + static_cast<int32_t>(random.Below(
                                                  tokenizer.vocab_size() - kFirstOrdinaryToken)));
    }
  }
  for (size_t i = 0; i < options.prompt_lengths.size(); ++i) {
    const int length = options.prompt_lengths[i];
    Subject subject;
    subject.name = absl::StrCat("subject ", i, " (", length, " prompt tokens)");
    engine::GenerationRequest& request = subject.request;
    const int common = i % 2 == 1 ? std::min(length, kCommonPrefix) : 0;
    request.prompt = Stretch(0, common);
    const std::vector<int32_t> own = Stretch(200 + 37 * static_cast<int64_t>(i), length - common);
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    engine::SamplingOptions& s = request.sampling;
    s.seed = 1000 + i;
    s.max_tokens = options.output_tokens;
    s.ignore_eos = true;
    s.temperature = 0;
    s.logprobs = 1;
    switch (i % 4) {
      case 0:
        s.logprobs = 5;
        break;
      case 1:
        s.temperature = 0.8f;
        s.top_p = 0.9f;
        break;
      case 2:
        s.temperature = 1.0f;
        s.top_k = 40;
        s.repetition_penalty = 1.1f;
        s.frequency_penalty = 0.2f;
        s.logit_bias = {{kFirstOrdinaryToken, 0.5f}};
        break;
      default:
        s.prompt_logprobs = 2;
    }
    subjects_.push_back(std::move(subject));
  }
}

void Workload::AddFollowUp(size_t subject, const std::vector<int32_t>& output) {
  Subject next = subjects_[subject];
  next.name = absl::StrCat("follow-up of ", next.name);
  next.follows = static_cast<int>(subject);
  std::vector<int32_t>& prompt = next.request.prompt;
  prompt.insert(prompt.end(), output.begin(), output.end());
  const std::vector<int32_t> more = Stretch(777, 9);
  prompt.insert(prompt.end(), more.begin(), more.end());
  next.request.sampling.prompt_logprobs = -1;
  subjects_.push_back(std::move(next));
}

std::vector<int32_t> Workload::Stretch(int64_t begin, int length) const {
  std::vector<int32_t> out;
  for (int i = 0; i < length; ++i) {
    out.push_back(tokens_[static_cast<size_t>(begin + i) % tokens_.size()]);
  }
  return out;
}

engine::GenerationRequest Workload::Neighbour(Neighbours kind, int32_t poison_token,
                                              const Subject& like, Random& random,
                                              absl::Span<const int32_t> expert_tokens) const {
  engine::GenerationRequest request;
  const int longest =
      *std::max_element(options_.prompt_lengths.begin(), options_.prompt_lengths.end());
  int length = 1 + static_cast<int>(random.Below(std::min(longest, 200)));
  if (kind == Neighbours::kVeryLong) length = options_.very_long_prompt;
  request.prompt = Stretch(random.Below(static_cast<int64_t>(tokens_.size())), length);
  if (kind == Neighbours::kLongOutput) request.prompt.resize(std::min(length, 8));
  if (kind == Neighbours::kSamePrompt) request.prompt = like.request.prompt;
  if (kind == Neighbours::kNan) {
    const int64_t at = random.Chance(0.5f) ? length - 1 : random.Below(length);
    request.prompt[static_cast<size_t>(at)] = poison_token;
  }
  request.sampling.temperature = random.Chance(0.3f) ? 0.0f : 0.9f;
  request.sampling.seed = random.Next();
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = 2 + random.Below(options_.output_tokens);
  if (kind == Neighbours::kLongOutput) request.sampling.max_tokens = 60 + random.Below(60);
  if (ChoosesExperts(kind)) {
    request.prompt.resize(static_cast<size_t>(24 + random.Below(25)));
    const int64_t from = random.Below(static_cast<int64_t>(expert_tokens.size()));
    for (size_t i = 0; i < request.prompt.size(); ++i) {
      request.prompt[i] = expert_tokens[(static_cast<size_t>(from) + i) % expert_tokens.size()];
    }
    // As long as any subject, and of the same tokens.
    request.sampling.max_tokens = options_.output_tokens + 4;
    request.sampling.temperature = expert_tokens.size() == 1 ? 0.0f : 1.0f;
    for (const int32_t token : expert_tokens) request.sampling.logit_bias.push_back({token, 100});
  }
  return request;
}

}  // namespace verbatim::conformance
