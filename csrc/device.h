// What the kernels run on, for `pxfast doctor`. Torch-free. Implemented in cuda/device.cu.
#pragma once

#include <string>

namespace px::cuda {

// One line: how many devices there are and their names, or why none can be used (CUDA's message), followed by
// the runtime and driver versions. Does not throw, and leaves no CUDA error behind.
std::string device_status();

}  // namespace px::cuda
