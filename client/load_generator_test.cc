// The client and the load generator against a service in this process.
#include "client/load_generator.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "verbatim/v1/verbatim.grpc.pb.h"

namespace verbatim::client {
namespace {

// Streams as many one-token deltas as max_tokens says; "fail" is refused, "hang" goes on until it
// is cancelled.
class FakeService : public v1::VerbatimService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const int now = ++in_flight_;
    int seen = most_in_flight_;
    while (now > seen && !most_in_flight_.compare_exchange_weak(seen, now)) {
    }
    const grpc::Status status = Stream(context, *request, writer);
    --in_flight_;
    return status;
  }
  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    response->set_version("fake");
    return grpc::Status::OK;
  }

  int most_in_flight() const { return most_in_flight_; }
  int cancelled() const { return cancelled_; }

 private:
  grpc::Status Stream(grpc::ServerContext* context, const v1::GenerateRequest& request,
                      grpc::ServerWriter<v1::GenerateResponse>* writer) {
    if (request.text() == "fail") {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "text: no");
    }
    v1::GenerateResponse response;
    response.mutable_accepted()->set_numerics_id("id");
    writer->Write(response);
    const bool hang = request.text() == "hang";
    for (int64_t i = 0; hang || i < request.sampling().max_tokens(); ++i) {
      response.mutable_delta()->set_text(absl::StrCat(i % 10));
      response.mutable_delta()->clear_token_ids();
      response.mutable_delta()->add_token_ids(static_cast<int32_t>(i));
      if (!writer->Write(response) || context->IsCancelled()) {
        ++cancelled_;
        return grpc::Status::CANCELLED;
      }
    }
    response.mutable_finished()->set_logits_sha256("hash");
    writer->Write(response);
    if (request.text() == "unfinished") return grpc::Status::OK;
    response.mutable_usage()->set_output_tokens(request.sampling().max_tokens());
    writer->Write(response);
    return grpc::Status::OK;
  }

  std::atomic<int> in_flight_{0}, most_in_flight_{0}, cancelled_{0};
};

class LoadGeneratorTest : public testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    auto client = Client::Connect(absl::StrCat("127.0.0.1:", port), absl::Seconds(30));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  void TearDown() override {
    client_.reset();
    server_->Shutdown();
  }

  static WorkItem Item(const std::string& text, int64_t max_tokens,
                       absl::Duration offset = absl::ZeroDuration()) {
    WorkItem item;
    item.request.set_text(text);
    item.request.mutable_sampling()->set_max_tokens(max_tokens);
    item.offset = offset;
    return item;
  }

  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
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
  EXPECT_LE(service_.most_in_flight(), 3);
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
