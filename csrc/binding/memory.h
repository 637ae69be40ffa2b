// Memory for large results and scratch of CPU kernels.
//
// The system gives large memory page by page and cleared: the first write to it can cost more than the
// arithmetic. While `keep_memory` is on, what is dropped is kept for what comes next, and goes back to the
// system at the end. What is kept and what is in use never take more than was once in use together.
#pragma once

#include "binding/tensors.h"

namespace px::binding {

// A contiguous tensor on the CPU, its contents arbitrary.
Tensor new_memory(const Tensor& like, const Shape& shape, ScalarType dtype);

// The same for a kernel's scratch; none for 0 bytes.
std::optional<Tensor> new_scratch(const Tensor& like, size_t bytes);

// Calls nest; the last one that turns it off gives everything back.
void keep_memory(bool on);

}  // namespace px::binding
