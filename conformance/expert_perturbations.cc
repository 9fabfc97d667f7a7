// What only mixtures of experts are tried with: neighbours who choose experts, and limits.
#include "conformance/expert_perturbations.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/isa.h"

namespace verbatim::conformance {
namespace {

using kernels::CapacityOverflow;
using kernels::cpu::Isa;

const char* Description(Neighbours kind) {
  if (kind == Neighbours::kOneExpert) return "one expert";
  return kind == Neighbours::kSubjectsExperts ? "the subject's experts" : "all experts evenly";
}

}  // namespace

std::vector<Variant> ExpertNeighbours(const Scale& scale, const std::vector<Neighbours>& kinds) {
  std::vector<Variant> out;
  for (const Neighbours kind : kinds) {
    for (const int batch : {1, 4}) {
      Variant variant;
      variant.label = absl::StrCat(Description(kind), ", ", batch, " at a time");
      variant.traffic.batch = batch;
      variant.traffic.neighbours = scale.neighbours;
      variant.traffic.kind = kind;
      variant.compound = batch > 1;
      out.push_back(variant);
    }
  }
  return out;
}

std::vector<Variant> ExpertLimits(const Scale& scale, CapacityOverflow overflow) {
  std::vector<Variant> out;
  for (const double factor : scale.capacity_factors) {
    Variant variant;
    variant.label = absl::StrCat("factor ", factor);
    variant.traffic.batch = 4;
    variant.engine.capacity_factor = factor;
    variant.engine.overflow = overflow;
    variant.traffic.limited = scale.neighbours;
    out.push_back(variant);
    // Without bf16 products PORTABLE rows share their passes with THROUGHPUT rows.
    if (kernels::cpu::DetectIsa() <= Isa::kAvx2) continue;
    variant.label += ", AVX2";
    variant.compound = true;
    variant.engine.isa = Isa::kAvx2;
    variant.traffic.limited_kind = Neighbours::kOneExpert;
    out.push_back(variant);
  }
  return out;
}

void AddExperts(const Scale& scale, Random& random, int number, Variant* v) {
  EngineSetup& e = v->engine;
  TrafficSetup& t = v->traffic;
  const std::vector<Neighbours> kinds = {Neighbours::kOneExpert, Neighbours::kSubjectsExperts,
                                         Neighbours::kSpreadExperts};
  if (random.Chance(0.3f)) t.kind = random.PickFrom(kinds);
  t.limited_kind = random.PickFrom(kinds);
  const double factor = random.PickFrom<double>({0.25, 0.5, 1.0, 1.5});
  const bool next = number % 3 == 2;
  const int limited = 3 + static_cast<int>(random.Below(scale.neighbours));
  if (number % 4 != 3) {
    e.capacity_factor = factor;
    e.overflow = next ? CapacityOverflow::kNext : CapacityOverflow::kDrop;
    t.limited = limited;
  }
  // PORTABLE rows share passes with limited ones only without bf16 products.
  if (number % 4 == 1 && kernels::cpu::DetectIsa() > Isa::kAvx2) e.isa = Isa::kAvx2;
  absl::StrAppend(&v->label, ", experts: neighbours of kind ", static_cast<int>(t.kind), ", isa ",
                  e.isa.has_value() ? std::string(NameOf(*e.isa)) : "auto", ", capacity factor ",
                  e.capacity_factor, next ? " (next), " : " (drop), ", t.limited,
                  " limited of kind ", static_cast<int>(t.limited_kind));
}

}  // namespace verbatim::conformance
