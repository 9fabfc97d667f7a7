// The client and the load generator against a service in this process.
#include "client/load_generator.h"

#include <string>

#include "client/client_test_support.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

class LoadGeneratorTest : public testing::Test {
 protected:
  static WorkItem Item(const std::string& text, int64_t max_tokens,
                       absl::Duration offset = absl::ZeroDuration()) {
    WorkItem item;
    item.request.set_text(text);
    item.request.mutable_sampling()->set_max_tokens(max_tokens);
    item.offset = offset;
    return item;
  }

  FakeServer server_;
  std::unique_ptr<Client> client_ = server_.Connect();
};

TEST_F(LoadGeneratorTest, OneCallIsRecordedWhole) {
  const CallRecord record = client_->Generate(Item("x", 12).request);
  ASSERT_TRUE(record.status.ok()) << record.status;
  ASSERT_EQ(record.samples.size(), 1U);
  EXPECT_EQ(record.samples[0].text, "012345678901");
  EXPECT_EQ(record.samples[0].token_ids.size(), 12U);
  EXPECT_EQ(record.samples[0].finished->logits_sha256(), "hash");
  EXPECT_EQ(record.accepted.numerics_id(), "id");
  EXPECT_EQ(record.usage->output_tokens(), 12);
  EXPECT_EQ(record.inter_token_latencies().size(), 11U);
  EXPECT_LE(record.scheduled, record.started);
  EXPECT_LE(*record.time_to_first_token(), record.end_to_end_latency());
}

TEST_F(LoadGeneratorTest, ErrorsKeepTheirStatus) {
  const CallRecord record = client_->Generate(Item("fail", 1).request);
  EXPECT_EQ(Describe(record.status), "INVALID_ARGUMENT: text: no");
  EXPECT_EQ(record.time_to_first_token(), std::nullopt);
  EXPECT_EQ(client_->Generate(Item("unfinished", 1).request).status.code(),
            absl::StatusCode::kInternal);
}

TEST_F(LoadGeneratorTest, ClosedLoopKeepsToItsConcurrency) {
  std::vector<WorkItem> items(40, Item("x", 20));
  items[7] = Item("fail", 1);
  const LoadResult result =
      RunLoad(client_.get(), items, {.max_concurrency = 3, .closed_loop = true});
  EXPECT_EQ(result.completed(), 39);
  EXPECT_FALSE(result.records[7].status.ok());
  EXPECT_EQ(result.output_tokens(), 39 * 20);
  EXPECT_LE(server_.service().most_in_flight(), 3);
  for (const CallRecord& record : result.records) EXPECT_LE(record.scheduled, record.started);
}

TEST_F(LoadGeneratorTest, OpenLoopCountsFromTheSchedule) {
  std::vector<WorkItem> items;
  for (int i = 0; i < 5; ++i) items.push_back(Item("x", 2, absl::Milliseconds(10 * i)));
  const LoadResult result = RunLoad(client_.get(), items, {});
  EXPECT_EQ(result.completed(), 5);
  EXPECT_DOUBLE_EQ(result.offered_rate, 100);
  for (size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(result.records[i].scheduled,
              result.start + absl::ToChronoNanoseconds(items[i].offset));
    EXPECT_GE(result.records[i].started, result.records[i].scheduled);
  }
}

TEST_F(LoadGeneratorTest, OpenLoopWaitsForASlotAndCountsTheWait) {
  std::vector<WorkItem> items(30, Item("x", 30));  // all due at once
  const LoadResult result = RunLoad(client_.get(), items, {.max_concurrency = 2});
  EXPECT_EQ(result.completed(), 30);
  EXPECT_LE(server_.service().most_in_flight(), 2);
  const CallRecord& last = result.records.back();
  int64_t ended_before_last = 0;
  for (const CallRecord& record : result.records) {
    EXPECT_EQ(record.scheduled, result.start);
    EXPECT_GE(*record.time_to_first_token(), SecondsBetween(record.scheduled, record.started));
    ended_before_last += record.ended <= last.started ? 1 : 0;
  }
  EXPECT_GE(ended_before_last, 28);
  EXPECT_GE(last.end_to_end_latency(), SecondsBetween(result.start, last.started));
}

TEST_F(LoadGeneratorTest, InterruptCancelsWhatIsInFlight) {
  const std::vector<WorkItem> items(4, Item("hang", 1));
  const LoadResult result =
      RunLoad(client_.get(), items,
              {.max_concurrency = 2, .closed_loop = true, .interrupted = [] { return true; }});
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.completed(), 0);
  EXPECT_EQ(result.records[0].status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(result.records[3].status.message(), "not started");
}

TEST(Connect, SaysWhereNobodyAnswers) {
  const auto client = Client::Connect("127.0.0.1:1", absl::ZeroDuration());
  EXPECT_EQ(client.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(client.status().message().find("127.0.0.1:1"), absl::string_view::npos);
}

}  // namespace
}  // namespace verbatim::client
