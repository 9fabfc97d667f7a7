// Spherical k-means with fixed orders of summation.
#include "upcycle/router_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary64.h"
#include "kernels/numerics/philox.h"

namespace verbatim::upcycle {
namespace {

using kernels::cpu::ThreadPool;

// Sample index of the random words, so that they differ from those of the experts' weights.
constexpr uint32_t kRouterStream = 0x726F7574;  // "rout"
// How fast a cluster's scale follows its load, and how far it may go.
constexpr double kBalanceExponent = 0.2, kLeastScale = 0.6, kGreatestScale = 1.6;

// Eight partial sums in ascending order, then pairs: fixed, and wide enough for SIMD.
double Dot(const float* a, const float* b, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      lanes[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    }
  }
  for (; i < n; ++i) lanes[i % 8] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Scales to length 1; a zero row stays zero.
void Normalise(float* row, int64_t n) {
  const double length = std::sqrt(Dot(row, row, n));
  if (!(length > 0)) return;
  for (int64_t i = 0; i < n; ++i) row[i] = static_cast<float>(row[i] / length);
}

// Uniform in [0, 1) from one word.
double Uniform(const RouterFitOptions& options, uint32_t draw) {
  return numerics::PhiloxWord(options.seed, options.layer, kRouterStream, draw) * 0x1p-32;
}

class Clustering {
 public:
  Clustering(absl::Span<const float> rows, int64_t hidden, const RouterFitOptions& options,
             ThreadPool& pool)
      : rows_(rows.begin(), rows.end()),
        n_(static_cast<int64_t>(rows.size()) / hidden),
        hidden_(hidden),
        experts_(options.num_experts),
        options_(options),
        pool_(pool),
        centroids_(experts_ * hidden),
        scales_(experts_, 1.0),
        cluster_(n_),
        cosine_(n_) {}

  absl::Status Run() {
    RemoveMeanDirection();
    if (absl::Status status = Begin(); !status.ok()) return status;
    for (int64_t i = 0; i < options_.iterations; ++i) {
      Assign();
      Balance();
      MoveCentroids();
    }
    return absl::OkStatus();
  }

  // β of the contract, over the rows as the router will see them.
  absl::StatusOr<RouterFit> Router(absl::Span<const float> rows) {
    std::vector<float> direction(centroids_.size());
    for (int64_t e = 0; e < experts_; ++e) {
      for (int64_t i = 0; i < hidden_; ++i) {
        direction[e * hidden_ + i] = static_cast<float>(centroids_[e * hidden_ + i] * scales_[e]);
      }
    }
    std::vector<double> gaps(n_);
    pool_.Run([&](int thread) {
      const ThreadPool::Range part = ThreadPool::PartOf(n_, 1, thread, pool_.threads());
      for (int64_t r = part.begin; r < part.end; ++r) {
        double first = -HUGE_VAL, second = -HUGE_VAL;
        for (int64_t e = 0; e < experts_; ++e) {
          const double logit = Dot(rows.data() + r * hidden_, Centroid(direction, e), hidden_);
          second = std::max(second, std::min(first, logit));
          first = std::max(first, logit);
        }
        gaps[r] = first - second;
      }
    });
    const double gap = std::accumulate(gaps.begin(), gaps.end(), 0.0) / static_cast<double>(n_);
    if (!(gap > 0) || !std::isfinite(gap)) {
      return absl::InvalidArgumentError("router: the rows cannot be told apart");
    }
    const double beta =
        (numerics::Log64(options_.first_share) - numerics::Log64(1 - options_.first_share)) / gap;
    RouterFit fit;
    fit.weights.resize(direction.size());
    for (size_t i = 0; i < direction.size(); ++i) {
      fit.weights[i] = numerics::RoundToBf16(static_cast<float>(beta * direction[i]));
    }
    return fit;
  }

 private:
  const float* Row(int64_t r) const { return rows_.data() + r * hidden_; }
  const float* Centroid(const std::vector<float>& all, int64_t e) const {
    return all.data() + e * hidden_;
  }

  void RemoveMeanDirection() {
    std::vector<double> sum(hidden_);
    for (int64_t r = 0; r < n_; ++r) {
      for (int64_t i = 0; i < hidden_; ++i) sum[i] += Row(r)[i];
    }
    std::vector<float> mean(hidden_);
    for (int64_t i = 0; i < hidden_; ++i) {
      mean[i] = static_cast<float>(sum[i] / static_cast<double>(n_));
    }
    Normalise(mean.data(), hidden_);
    pool_.Run([&](int thread) {
      const ThreadPool::Range part = ThreadPool::PartOf(n_, 1, thread, pool_.threads());
      for (int64_t r = part.begin; r < part.end; ++r) {
        float* const row = rows_.data() + r * hidden_;
        const double along = Dot(row, mean.data(), hidden_);
        for (int64_t i = 0; i < hidden_; ++i) row[i] = static_cast<float>(row[i] - along * mean[i]);
        Normalise(row, hidden_);
      }
    });
  }

  // k-means++: each further centroid is a row, drawn with a chance that grows with its distance
  // from those there are.
  absl::Status Begin() {
    SetCentroid(0, static_cast<int64_t>(Uniform(options_, 0) * static_cast<double>(n_)));
    std::vector<double> nearest(n_, -1.0);  // greatest cosine so far
    for (int64_t e = 1; e < experts_; ++e) {
      double total = 0;
      for (int64_t r = 0; r < n_; ++r) {
        nearest[r] = std::max(nearest[r], Dot(Row(r), Centroid(centroids_, e - 1), hidden_));
        total += std::max(0.0, 1 - nearest[r]);
      }
      // Distances that are nothing but rounding do not make a cluster.
      if (!(total > 1e-6 * static_cast<double>(n_))) {
        return absl::InvalidArgumentError(
            absl::StrCat("router: ", n_, " rows do not make ", experts_, " clusters"));
      }
      double left = Uniform(options_, static_cast<uint32_t>(e)) * total;
      int64_t chosen = n_ - 1;
      for (int64_t r = 0; r < n_; ++r) {
        left -= std::max(0.0, 1 - nearest[r]);
        if (left < 0) {
          chosen = r;
          break;
        }
      }
      SetCentroid(e, chosen);
    }
    return absl::OkStatus();
  }

  void SetCentroid(int64_t e, int64_t row) {
    std::copy_n(Row(row), hidden_, centroids_.data() + e * hidden_);
  }

  void Assign() {
    pool_.Run([&](int thread) {
      const ThreadPool::Range part = ThreadPool::PartOf(n_, 1, thread, pool_.threads());
      for (int64_t r = part.begin; r < part.end; ++r) {
        double best = -HUGE_VAL;
        for (int64_t e = 0; e < experts_; ++e) {
          const double cosine = Dot(Row(r), Centroid(centroids_, e), hidden_);
          if (cosine * scales_[e] <= best) continue;
          best = cosine * scales_[e];
          cluster_[r] = static_cast<int32_t>(e);
          cosine_[r] = cosine;
        }
      }
    });
  }

  void Balance() {
    std::vector<int64_t> load(experts_);
    for (const int32_t e : cluster_) ++load[e];
    for (int64_t e = 0; e < experts_; ++e) {
      const double share = static_cast<double>(load[e] * experts_) / static_cast<double>(n_);
      const double factor =
          numerics::Exp64(-kBalanceExponent * numerics::Log64(std::max(share, 0.1)));
      scales_[e] = std::clamp(scales_[e] * factor, kLeastScale, kGreatestScale);
    }
  }

  // A cluster without rows begins anew at the row that fits its own cluster worst.
  void MoveCentroids() {
    const int64_t worst = std::min_element(cosine_.begin(), cosine_.end()) - cosine_.begin();
    pool_.Run([&](int thread) {
      const ThreadPool::Range part = ThreadPool::PartOf(experts_, 1, thread, pool_.threads());
      std::vector<double> sum(hidden_);
      for (int64_t e = part.begin; e < part.end; ++e) {
        std::fill(sum.begin(), sum.end(), 0.0);
        bool empty = true;
        for (int64_t r = 0; r < n_; ++r) {
          if (cluster_[r] != e) continue;
          empty = false;
          for (int64_t i = 0; i < hidden_; ++i) sum[i] += Row(r)[i];
        }
        if (empty) {
          SetCentroid(e, worst);
          continue;
        }
        double squares = 0;
        for (const double value : sum) squares += value * value;
        const double length = std::sqrt(squares);
        if (!(length > 0)) continue;  // rows that cancel: it stays where it is
        for (int64_t i = 0; i < hidden_; ++i) {
          centroids_[e * hidden_ + i] = static_cast<float>(sum[i] / length);
        }
      }
    });
  }

  std::vector<float> rows_;  // [n, hidden], without the mean direction, length 1
  const int64_t n_, hidden_, experts_;
  const RouterFitOptions& options_;
  ThreadPool& pool_;
  std::vector<float> centroids_;  // [experts, hidden]
  std::vector<double> scales_;    // [experts]
  std::vector<int32_t> cluster_;  // [n]
  std::vector<double> cosine_;    // [n], to its own centroid
};

}  // namespace

absl::StatusOr<RouterFit> FitRouter(absl::Span<const float> rows, int64_t hidden,
                                    const RouterFitOptions& options, ThreadPool& pool) {
  const int64_t n = hidden < 1 ? 0 : static_cast<int64_t>(rows.size()) / hidden;
  if (hidden < 1 || n * hidden != static_cast<int64_t>(rows.size()) || options.num_experts < 2 ||
      n < options.num_experts || !(options.first_share > 0.5 && options.first_share < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "router: ", n, " rows, ", options.num_experts, " experts, first share ",
        options.first_share, "; needs 2 experts or more, a row for each, a share in (0.5, 1)"));
  }
  Clustering clustering(rows, hidden, options, pool);
  if (absl::Status status = clustering.Run(); !status.ok()) return status;
  absl::StatusOr<RouterFit> fit = clustering.Router(rows);
  if (!fit.ok()) return fit.status();
  fit->assigned.resize(options.num_experts);
  const Routing routing = RouteRows(rows, hidden, fit->weights, 1, pool);
  for (const int32_t expert : routing.experts) ++fit->assigned[expert];
  return fit;
}

Routing RouteRows(absl::Span<const float> rows, int64_t hidden, absl::Span<const float> router,
                  int64_t top_k, ThreadPool& pool) {
  const int64_t n = static_cast<int64_t>(rows.size()) / hidden;
  const int64_t num_experts = static_cast<int64_t>(router.size()) / hidden;
  Routing result;
  result.experts.resize(n * top_k);
  result.weights.resize(n * top_k);
  pool.Run([&](int thread) {
    const ThreadPool::Range part = ThreadPool::PartOf(n, 1, thread, pool.threads());
    std::vector<std::pair<double, int32_t>> order(num_experts);  // (−logit, expert)
    for (int64_t r = part.begin; r < part.end; ++r) {
      for (int64_t e = 0; e < num_experts; ++e) {
        order[e] = {-Dot(rows.data() + r * hidden, router.data() + e * hidden, hidden),
                    static_cast<int32_t>(e)};
      }
      std::partial_sort(order.begin(), order.begin() + top_k, order.end());
      double sum = 0;
      for (int64_t k = 0; k < top_k; ++k) {
        result.experts[r * top_k + k] = order[k].second;
        // Far below the greatest logit a weight is nothing.
        const double weight = numerics::Exp64(std::max(-700.0, order[0].first - order[k].first));
        result.weights[r * top_k + k] = weight;
        sum += weight;
      }
      for (int64_t k = 0; k < top_k; ++k) result.weights[r * top_k + k] /= sum;
    }
  });
  return result;
}

}  // namespace verbatim::upcycle
