// Shows that the suite can fail: a build with one planted fault is caught, in the cells that can
// see it and in no other.
//
// Built once per fault. The executable compiles the faulty source itself, with the macro defined,
// so that the linker takes it in place of the library's; the libraries are the shipped ones.
#include <gtest/gtest.h>

#include <cstdio>
#include <set>
#include <string>

#include "conformance/suite_presets.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/isa.h"

namespace verbatim::conformance {
namespace {

struct Expectation {
  const char* fault;
  kernels::Policy policy;
  std::set<std::string> caught;  // must report mismatches
  std::set<std::string> clean;   // must not: the fault cannot show there
  bool mixture = false;          // on the mixture of experts
  bool needs_bf16 = false;       // only in the bf16 products of PINNED
};

#if defined(VERBATIM_FAULT_GEMM_ORDER)
// Products of more than 8 rows are summed from left to right. It shows wherever the number of rows
// of a step differs from the reference's.
const Expectation kExpectation = {
    "one reduction order depends on the batch size",
    kernels::Policy::kPortable,
    {"batch size", "position in the batch", "neighbours: ordinary", "prefill chunk size",
     "prefix cache: warm", "mixed: 90 %", "combined"},
    {"repetition", "page size", "page table", "threads", "instruction set", "restart", "replica"}};
#elif defined(VERBATIM_FAULT_SHARD_JOINS)
// The same in the bf16 products of PINNED: where an expert gets more than 2 rows, the shards of its
// matrices are joined from left to right. On the mixture, whose F32 matrices and routers read the
// residual stream unrounded: rounding to bf16 hides almost every such difference from the others.
const Expectation kExpectation = {
    .fault = "the order in which PINNED joins shards depends on the batch size",
    .policy = kernels::Policy::kPinned,
    .caught = {"batch size", "position in the batch", "neighbours: ordinary", "prefix cache: warm",
               "experts: crowded", "combined"},
    .clean = {"repetition", "page size", "page table", "threads", "restart", "replica"},
    .mixture = true,
    .needs_bf16 = true};
#elif defined(VERBATIM_FAULT_EXPERT_CAPACITY)
// Exempt rows are limited like the others that share their pass.
const Expectation kExpectation = {
    .fault = "strong rows lose experts that their neighbours fill",
    .policy = kernels::Policy::kPinned,
    .caught = {"experts: capacity for others, drop", "experts: capacity for others, next",
               "combined"},
    .clean = {"repetition", "batch size", "neighbours: ordinary", "prefix cache: other policy",
              "restart", "mixed: 50 %", "experts: crowded", "experts: spread"},
    .mixture = true};
#elif defined(VERBATIM_FAULT_EXPERT_ORDER)
// In steps of more than 8 rows a token's experts are added in descending order of rank.
const Expectation kExpectation = {
    .fault = "the order in which a token's experts are added depends on the batch size",
    .policy = kernels::Policy::kPortable,
    .caught = {"batch size", "neighbours: ordinary", "prefix cache: warm", "experts: crowded",
               "experts: spread", "experts: capacity for others, drop", "combined"},
    .clean = {"repetition", "page size", "page table", "threads", "instruction set", "restart",
              "replica"},
    .mixture = true};
#elif defined(VERBATIM_FAULT_ATTENTION_SPLIT)
// With four or more sequences in a step, attention is cut at any block where the work of two
// threads meets.
const Expectation kExpectation = {"the attention split depends on the batch",
                                  kernels::Policy::kPortable,
                                  {"batch size", "neighbours: very long", "combined"},
                                  {"repetition", "page size", "page table", "threads",
                                   "instruction set", "restart", "replica", "log-probabilities"}};
#elif defined(VERBATIM_FAULT_PAGE_CLASS)
// PINNED requests read cached pages that throughput kernels wrote.
const Expectation kExpectation = {
    "pages of another policy are shared",
    kernels::Policy::kPinned,
    {"prefix cache: other policy"},
    {"repetition", "batch size", "neighbours: NaN", "prefill chunk size", "prefix cache: warm",
     "prefix cache: partly warm", "prefix cache: evicted", "page size", "page table", "preemption",
     "threads", "restart", "replica", "log-probabilities", "n samples", "mixed: 50 %"}};
#else
#error "one of the faults must be chosen"
#endif

TEST(FaultTest, TheSuiteCatchesThePlantedFault) {
  if (kExpectation.needs_bf16 && !kernels::cpu::UsesBf16Leaves(kernels::cpu::DetectIsa())) {
    GTEST_SKIP() << "NOT TRIED: this processor has no bf16 dot products, PINNED computes as "
                    "PORTABLE does and has no shards to join";
  }
  SuiteOptions options = kExpectation.mixture ? ShortMixtureSuite(false) : ShortSuite();
  options.policies = {{.policy = kExpectation.policy}};
  options.wanted = [](const Perturbation& perturbation) {
    return kExpectation.caught.contains(perturbation.name) ||
           kExpectation.clean.contains(perturbation.name);
  };
  const absl::StatusOr<std::vector<Cell>> cells = RunSuite(options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_EQ(cells->size(), kExpectation.caught.size() + kExpectation.clean.size());
  std::printf("planted: %s\n", kExpectation.fault);
  for (const Cell& cell : *cells) {
    std::printf("  %-36s %s: %lld of %lld rows\n", cell.perturbation.c_str(),
                cell.mismatches() > 0 ? "CAUGHT" : "clean",
                static_cast<long long>(cell.result.rows_differing),
                static_cast<long long>(cell.result.rows_compared));
    EXPECT_EQ(cell.mismatches() > 0, kExpectation.caught.contains(cell.perturbation))
        << cell.perturbation;
    if (cell.mismatches() == 0) continue;
    ASSERT_TRUE(cell.result.first.has_value());
    EXPECT_FALSE(cell.result.first->variant.empty());
    EXPECT_FALSE(cell.result.first->request.empty());
    EXPECT_GE(cell.result.first->index, 0);
    EXPECT_NE(cell.result.first->reference, cell.result.first->observed);
  }
}

}  // namespace
}  // namespace verbatim::conformance
