// Writing down the calibration and how it did.
#include "lab/fragility_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/report_json.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

json ReliabilityJson(const Reliability& r) {
  json bins = json::array();
  for (const ReliabilityBin& bin : r.bins) {
    if (bin.answers == 0) continue;
    bins.push_back({{"from", bin.from},
                    {"to", bin.to},
                    {"answers", bin.answers},
                    {"mean_predicted", bin.mean_predicted},
                    {"differed", bin.differed},
                    {"observed", Share(bin.differed, bin.answers)},
                    {"observed_wilson_95", {bin.observed.low, bin.observed.high}}});
  }
  return {{"prompts", r.prompts},
          {"answers", r.answers},
          {"bins", std::move(bins)},
          {"expected", r.expected},
          {"expected_95", {r.expected_low, r.expected_high}},
          {"differed", r.differed},
          {"differed_bootstrap_95", {r.differed_interval.low, r.differed_interval.high}},
          {"brier", r.brier},
          {"brier_base_rate", r.brier_base_rate},
          {"tokens", r.tokens},
          {"fragile_tokens", r.fragile_tokens},
          {"first_differences_at_fragile_tokens", r.first_differences_at_fragile_tokens}};
}

}  // namespace

std::string FragilityTable(const FragilityMeasurement& measurement,
                           const FragilityAnalysis& analysis) {
  const fragility::Calibration& c = analysis.calibration;
  const Reliability& r = analysis.reliability;
  std::string out = absl::StrFormat(
      "\n%s, %s\n"
      "calibrated on %d prompts, %d answers, %d tokens compared\n"
      "drift of the top-two margin: median %.2g, 90 %% %.2g, 99 %% %.2g, 99.9 %% %.2g\n"
      "rate %.3f (95 %%: %.3f to %.3f)\n\n"
      "held out: %d prompts, %d answers, a rerun of each under load\n\n"
      "     predicted   answers   mean predicted   observed   95 %% (Wilson)\n",
      measurement.model.served_model_name(), measurement.configuration, c.prompts, c.answers,
      c.drift.samples(), c.drift.DriftQuantile(0.5), c.drift.DriftQuantile(0.9),
      c.drift.DriftQuantile(0.99), c.fragile_margin, c.rate.value, c.rate.low, c.rate.high,
      r.prompts, r.answers);
  for (const ReliabilityBin& bin : r.bins) {
    if (bin.answers == 0) continue;
    absl::StrAppendFormat(&out, "  %4.2f to %4.2f   %7d   %14.3f   %8.3f   %.3f to %.3f\n",
                          bin.from, bin.to, bin.answers, bin.mean_predicted,
                          Share(bin.differed, bin.answers), bin.observed.low, bin.observed.high);
  }
  absl::StrAppendFormat(
      &out,
      "\nexpected to differ %.1f (95 %%: %.1f to %.1f), differed %d (bootstrap over prompts 95 %%: "
      "%.0f to %.0f)\n"
      "Brier score %.4f, of the base rate %.4f\n"
      "fragile tokens %d of %d (%.2f %%); %d of %d first differences are at one\n",
      r.expected, r.expected_low, r.expected_high, r.differed, r.differed_interval.low,
      r.differed_interval.high, r.brier, r.brier_base_rate, r.fragile_tokens, r.tokens,
      100 * Share(r.fragile_tokens, r.tokens), r.first_differences_at_fragile_tokens, r.differed);
  return out;
}

json FragilityJson(const FragilityOptions& options, const FragilityMeasurement& measurement,
                   const FragilityAnalysis& analysis, const Machine& machine) {
  const fragility::Calibration& c = analysis.calibration;
  return {{"experiment", "fragility"},
          {"time", absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())},
          {"machine",
           {{"cpu", machine.cpu},
            {"cores", machine.cores},
            {"isa", machine.isa},
            {"memory_gib", machine.memory_gib},
            {"system", machine.system}}},
          {"model",
           {{"name", measurement.model.served_model_name()},
            {"weights_sha256", measurement.model.weights_sha256()}}},
          {"server_version", measurement.server.version()},
          {"configuration", measurement.configuration},
          {"options",
           {{"prompts", options.prompts()},
            {"rounds", options.rounds},
            {"max_tokens", options.max_tokens},
            {"seed", options.seed}}},
          {"background_requests", measurement.background_requests},
          {"wall_seconds", measurement.wall_seconds},
          {"drift_quantiles",
           {{"p50", c.drift.DriftQuantile(0.5)},
            {"p90", c.drift.DriftQuantile(0.9)},
            {"p99", c.drift.DriftQuantile(0.99)},
            {"p99.9", c.drift.DriftQuantile(0.999)}}},
          {"calibration", json::parse(fragility::ToJson(c), nullptr, false)},
          {"calibration_half",
           ReliabilityJson(MeasureReliability(analysis.calibration_half, options.seed))},
          {"held_out", ReliabilityJson(analysis.reliability)}};
}

std::string AnswerLines(const FragilityMeasurement& measurement) {
  std::string out;
  for (size_t p = 0; p < measurement.answers.size(); ++p) {
    const std::vector<fragility::Generation>& answers = measurement.answers[p].answers;
    for (size_t run = 0; run < answers.size(); ++run) {
      const json line = {{"prompt", p},
                         {"text", measurement.prompts[p]},
                         {"run", run},
                         {"tokens", answers[run].tokens},
                         {"top_margins", answers[run].top_margins}};
      absl::StrAppend(&out, client::Dump(line), "\n");
    }
  }
  return out;
}

}  // namespace verbatim::lab
