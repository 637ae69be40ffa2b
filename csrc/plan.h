// How a CPU kernel's work is handed to threads. Torch-free: kernels make plans, the binding runs them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace px::cpu {

// How a call is cut into tasks, which may run in any order on any number of threads; those of one step must
// be finished before the next step begins. The result has the same bits whatever `threads` says: it only
// moves cuts that no sum crosses.
struct Plan {
  static constexpr int max_steps = 2;
  int64_t tasks[max_steps];  // of each step; 0: nothing to do
  int64_t grain[max_steps];  // tasks that are worth a thread of their own
  std::size_t scratch_bytes;
};

}  // namespace px::cpu
