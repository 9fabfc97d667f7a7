// Which requests have a probability, and the report.
#include "server/fragility_scores.h"

#include "absl/strings/str_cat.h"

namespace verbatim::server {
namespace {

// The margin of the raw logits is what moves a token only where the best raw logit is the token.
bool RawLogitsDecide(const engine::SamplingOptions& s) {
  return s.temperature < 1e-5F && s.presence_penalty == 0 && s.frequency_penalty == 0 &&
         s.repetition_penalty == 1 && s.logit_bias.empty() && s.min_tokens == 0;
}

}  // namespace

FragilityScores::FragilityScores(const fragility::Calibration& calibration,
                                 const engine::GenerationRequest& request)
    : calibration_(calibration) {
  if (kernels::IsStrong(request.policy)) {
    strong_ = true;
    note_ = absl::StrCat(std::string(kernels::NameOf(request.policy)),
                         " promises equal bits under any load; fragile tokens are those that "
                         "THROUGHPUT could move");
  } else if (!RawLogitsDecide(request.sampling)) {
    gives_probability_ = false;
    note_ =
        "no probability: it is calibrated for temperature 0 without penalties, logit_bias and "
        "min_tokens";
  }
}

void FragilityScores::Add(int32_t sample, const std::vector<float>& top_margins) {
  fragility::Score& score = scores_.try_emplace(sample, calibration_).first->second;
  for (float margin : top_margins) score.Add(margin);
}

v1::Fragility FragilityScores::Take(int32_t sample) {
  const fragility::Score score = scores_.try_emplace(sample, calibration_).first->second;
  scores_.erase(sample);
  v1::Fragility out;
  out.set_fragile_tokens(score.fragile_tokens());
  if (gives_probability_) {
    const auto probability = strong_ ? fragility::Score::Probability() : score.probability();
    out.set_probability(probability.value);
    out.set_probability_low(probability.low);
    out.set_probability_high(probability.high);
  }
  out.set_calibration(calibration_.Describe());
  out.set_note(note_);
  return out;
}

}  // namespace verbatim::server
