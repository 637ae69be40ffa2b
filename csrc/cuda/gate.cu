// gate.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/gate.cuh"

namespace px::cuda {

void gate(const Gate& call, void* stream) { launch_gate(call, stream); }

}  // namespace px::cuda
