// Connection, load and output of `verbatim bench`.
#include "client/bench_command.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/arrivals.h"
#include "client/bench_options.h"
#include "client/bench_report.h"
#include "client/files.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/progress_bar.h"
#include "client/report_json.h"

namespace verbatim::client {
namespace {

// Exactly the asked-for share is deterministic, in random places.
std::vector<v1::Determinism> ChoosePolicies(const BenchOptions& options, size_t count) {
  std::vector<v1::Determinism> policies(count, options.other_policy());
  const double strong =
      std::round(options.deterministic_fraction.value_or(0) * static_cast<double>(count));
  std::fill_n(policies.begin(), static_cast<int64_t>(strong), options.strong_policy());
  std::mt19937_64 random(options.dataset.seed);
  std::shuffle(policies.begin(), policies.end(), random);
  return policies;
}

std::vector<WorkItem> MakeWork(const BenchOptions& options, const BenchRun& run) {
  const auto count = static_cast<int64_t>(run.items.size());
  const uint64_t seed = options.dataset.seed;
  std::vector<absl::Duration> offsets;
  if (options.ramp_up) {
    offsets = ArrivalOffsets(count, *options.ramp_up, options.burstiness, seed);
  } else {
    offsets = ArrivalOffsets(count, options.request_rate, options.burstiness, seed);
    FitToRate(options.request_rate, &offsets);
  }
  std::vector<WorkItem> work(run.items.size());
  for (size_t i = 0; i < work.size(); ++i) {
    v1::GenerateRequest& request = work[i].request;
    request = run.items[i].request;
    *request.mutable_sampling() = options.sampling.ToProto();
    request.mutable_sampling()->set_max_tokens(run.items[i].output_tokens);
    request.set_determinism(run.policies[i]);
    request.set_request_id(absl::StrCat(options.request_id_prefix, i));
    work[i].offset = offsets[i];
  }
  return work;
}

// Under a cache salt of their own: what they leave in the prefix cache must not help the load.
absl::Status WarmUp(const BenchOptions& options, Client* client,
                    const std::vector<WorkItem>& work) {
  std::vector<WorkItem> items;
  for (int64_t i = 0; i < options.num_warmups; ++i) {
    items.push_back(work[static_cast<size_t>(i) % work.size()]);
    items.back().request.set_cache_salt("warmup");
    items.back().request.set_request_id("");
  }
  const LoadResult load = RunLoad(client, items,
                                  {.max_concurrency = options.max_concurrency.value_or(0),
                                   .closed_loop = true,
                                   .interrupted = Interrupted});
  if (load.interrupted) return absl::CancelledError("interrupted");
  for (const CallRecord& record : load.records) {
    if (!record.status.ok()) {
      return absl::Status(record.status.code(),
                          absl::StrCat("warm-up request: ", record.status.message()));
    }
  }
  return absl::OkStatus();
}

LoadResult SendLoad(const BenchOptions& options, Client* client,
                    const std::vector<WorkItem>& work) {
  LoadOptions load_options;
  load_options.max_concurrency = options.max_concurrency.value_or(0);
  load_options.closed_loop = options.closed_loop();
  load_options.interrupted = Interrupted;
  ProgressBar bar;
  const TimePoint start = Clock::now();
  if (!options.disable_tqdm) {
    load_options.progress = [&](const LoadProgress& progress) {
      bar.Show(progress, SecondsBetween(start, Clock::now()));
    };
  }
  LoadResult load = RunLoad(client, work, load_options);
  if (!options.disable_tqdm) {
    LoadProgress last{.total = static_cast<int64_t>(work.size())};
    last.finished = static_cast<int64_t>(
        std::count_if(load.records.begin(), load.records.end(),
                      [](const CallRecord& record) { return record.ended != TimePoint(); }));
    last.failed = last.finished - load.completed();
    last.output_tokens = load.output_tokens();
    bar.Finish(last, load.seconds());
  }
  return load;
}

void PrintErrors(const LoadResult& load) {
  constexpr int kMost = 10;
  int printed = 0;
  for (size_t i = 0; i < load.records.size(); ++i) {
    const CallRecord& record = load.records[i];
    if (record.status.ok() || record.ended == TimePoint() || load.interrupted) continue;
    if (printed++ == 0) std::fprintf(stderr, "Failed requests (at most %d are shown):\n", kMost);
    if (printed > kMost) break;
    std::fprintf(stderr, "  request %zu: %s\n", i, Describe(record.status).c_str());
  }
}

absl::Status Save(const BenchOptions& options, const nlohmann::json& report) {
  const std::string path = BenchResultPath(options, report);
  const std::string text = Dump(report);
  absl::Status status =
      options.append_result ? AppendLine(path, text) : WriteFile(path, text + "\n");
  if (status.ok()) std::printf("wrote %s\n", path.c_str());
  return status;
}

absl::StatusOr<int> Run(const BenchOptions& options) {
  const auto client = options.connection.Connect();
  if (!client.ok()) return client.status();
  BenchRun run;
  const auto described = DescribeServer(client->get());
  if (!described.ok()) return described.status();
  run.model = described->model;
  auto items = MakeDataset(options.dataset, *described);
  if (!items.ok()) return items.status();
  run.items = *std::move(items);
  run.policies = ChoosePolicies(options, run.items.size());
  const std::vector<WorkItem> work = MakeWork(options, run);
  if (absl::Status status = WarmUp(options, client->get(), work); !status.ok()) return status;

  const auto before = (*client)->GetServerInfo();
  if (!before.ok()) return before.status();
  run.date = absl::Now();
  run.load = SendLoad(options, client->get(), work);
  const auto after = (*client)->GetServerInfo();
  if (after.ok()) run.steps.Add(*before, *after);
  run.server = *before;

  const nlohmann::json report = BenchJson(options, run);
  PrintErrors(run.load);
  std::fputs(BenchTable(options, report).c_str(), stdout);
  if (options.save_result || options.append_result) {
    if (absl::Status status = Save(options, report); !status.ok()) return status;
  }
  if (run.load.interrupted) return absl::CancelledError("interrupted");
  if (run.load.completed() == 0) return run.load.records[0].status;
  return 0;
}

}  // namespace

int RunBench(int argc, char** argv) {
  BenchOptions options;
  flags::FlagSet flags = options.Flags();
  return RunCommand({.name = "bench",
                     .flags = &flags,
                     .check = [&](const auto& positional) { return options.Check(positional); },
                     .run = [&] { return Run(options); }},
                    argc, argv);
}

}  // namespace verbatim::client
