// squared_attention.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/squared_attention.cuh"

namespace px::cuda {

int64_t squared_attention_scratch_bytes(const SquaredAttention& call) { return statistics_bytes(call); }

void squared_attention(const SquaredAttention& call, void* stream) {
  launch_squared_attention<AttentionCut>(call, stream);
}

}  // namespace px::cuda
