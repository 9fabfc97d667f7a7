// Differences and sums of StepStatistics.
#include "client/step_statistics.h"

namespace verbatim::client {
namespace {

void AddScaled(const v1::StepStatistics& from, int sign, v1::StepStatistics* to) {
  to->set_steps(to->steps() + sign * from.steps());
  to->set_strong_steps(to->strong_steps() + sign * from.strong_steps());
  to->set_ride_along_rows(to->ride_along_rows() + sign * from.ride_along_rows());
  to->set_tokens(to->tokens() + sign * from.tokens());
  to->set_generated_tokens(to->generated_tokens() + sign * from.generated_tokens());
  to->set_schedule_seconds(to->schedule_seconds() + sign * from.schedule_seconds());
  to->set_model_seconds(to->model_seconds() + sign * from.model_seconds());
  to->set_sample_seconds(to->sample_seconds() + sign * from.sample_seconds());
  to->set_emit_seconds(to->emit_seconds() + sign * from.emit_seconds());
  to->set_idle_seconds(to->idle_seconds() + sign * from.idle_seconds());
}

}  // namespace

void StepTotals::Add(const v1::GetServerInfoResponse& before,
                     const v1::GetServerInfoResponse& after) {
  AddScaled(after.steps(), 1, &steps);
  AddScaled(before.steps(), -1, &steps);
  front_end_cpu_seconds += after.front_end_cpu_seconds() - before.front_end_cpu_seconds();
}

void StepTotals::Add(const StepTotals& other) {
  AddScaled(other.steps, 1, &steps);
  front_end_cpu_seconds += other.front_end_cpu_seconds;
}

double StepTotals::step_seconds() const {
  return steps.schedule_seconds() + steps.model_seconds() + steps.sample_seconds() +
         steps.emit_seconds() + front_end_cpu_seconds;
}

double StepTotals::scheduler_and_front_end_share() const {
  const double all = step_seconds();
  if (all <= 0) return 0;
  return (steps.schedule_seconds() + steps.emit_seconds() + front_end_cpu_seconds) / all;
}

nlohmann::json StepTotals::ToJson() const {
  return {{"steps", steps.steps()},
          {"strong_steps", steps.strong_steps()},
          {"ride_along_rows", steps.ride_along_rows()},
          {"tokens", steps.tokens()},
          {"generated_tokens", steps.generated_tokens()},
          {"schedule_seconds", steps.schedule_seconds()},
          {"model_seconds", steps.model_seconds()},
          {"sample_seconds", steps.sample_seconds()},
          {"emit_seconds", steps.emit_seconds()},
          {"idle_seconds", steps.idle_seconds()},
          {"front_end_cpu_seconds", front_end_cpu_seconds},
          {"scheduler_and_front_end_share", scheduler_and_front_end_share()}};
}

}  // namespace verbatim::client
