// The scores of many tensors, as select_threshold and write_masks take them.
#pragma once

#include "binding/tensors.h"
#include "scores.h"

namespace px::binding {

using Tensors = std::vector<Tensor>;
using Masks = std::vector<std::optional<Tensor>>;

inline void check_scores(const std::string& op, const Tensors& scores, const Masks& alive) {
  if (scores.empty()) fail(op + ": scores must hold at least one tensor");
  if (alive.size() != scores.size()) {
    fail(op + ": alive must hold one entry for each of the " + std::to_string(scores.size()) +
         " scores, got " + std::to_string(alive.size()));
  }
  element_dtype(op, "scores", scores[0]);
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::string name = "scores[" + std::to_string(i) + "]", mask = "alive[" + std::to_string(i) + "]";
    if (scores[i].scalar_type() != scores[0].scalar_type()) {
      fail(op + ": " + name + " must be " + text(scores[0].scalar_type()) + " as scores[0] is, got " +
           text(scores[i].scalar_type()));
    }
    if (scores[i].device() != scores[0].device()) {
      fail(op + ": " + name + " must be on scores[0]'s device " + text(scores[0].device()) + ", got " +
           text(scores[i].device()));
    }
    if (!alive[i]) continue;
    if (shape(*alive[i]) != shape(scores[i])) {
      fail(op + ": " + mask + " must have the shape " + text(shape(scores[i])) + " of " + name + ", got " +
           text(shape(*alive[i])));
    }
    if (alive[i]->scalar_type() != ScalarType::Bool)
      fail(op + ": " + mask + " must be bool, got " + text(alive[i]->scalar_type()));
    if (alive[i]->device() != scores[0].device()) {
      fail(op + ": " + mask + " must be on scores[0]'s device " + text(scores[0].device()) + ", got " +
           text(alive[i]->device()));
    }
  }
}

// Contiguous arrays of checked scores, and the table of them that kernels take.
struct ScoreArrays {
  std::vector<Input> scores, alive;  // keep what the table points to
  std::vector<px::Scores> table;
  int64_t total = 0;
  px::Dtype dtype;

  ScoreArrays(const std::string& op, const Tensors& tensors, const Masks& masks)
      : dtype(element_dtype(op, "scores", tensors[0])) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      scores.emplace_back(tensors[i]);
      alive.emplace_back(masks[i]);
      table.push_back({scores[i].data(), alive[i].bytes(), tensors[i].numel(), total});
      total += tensors[i].numel();
    }
  }

  int64_t count() const { return static_cast<int64_t>(table.size()); }
};

}  // namespace px::binding
