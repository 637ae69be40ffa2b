// The launcher of squared_attention as a C function on host memory, for ctypes (attention_kernels.py). It
// returns null, or what went wrong. The file that nvcc compiles is compiled here for the CPU.
#include "abi.h"
#include "attention_cut.h"
#include "cuda/squared_attention.cu"

extern "C" {

// strides: n, h and row of q, k, in, v and the mask; sizes: N, H, T, S, D, E, P.
const char* emulated_squared_attention(const void* q, const void* k, const void* in, const void* v,
                                       const void* mask, const int64_t* strides, int64_t mask_step,
                                       bool mask_added, void* output, void* out, const int64_t* sizes,
                                       double scale, int dtype, bool backward, bool small,
                                       const char* order) {
  return emulated::guarded(order, [=] {
    const auto heads = [=](const void* data, int which) {
      const int64_t* const s = strides + 3 * which;
      return px::Heads{data, s[0], s[1], s[2]};
    };
    px::SquaredAttention call{};
    call.q = heads(q, 0), call.k = heads(k, 1), call.in = heads(in, 2), call.v = heads(v, 3);
    call.mask = heads(mask, 4), call.mask_step = mask_step, call.mask_added = mask_added;
    call.output = output, call.out = out;
    call.N = sizes[0], call.H = sizes[1], call.T = sizes[2], call.S = sizes[3];
    call.D = sizes[4], call.E = sizes[5], call.P = sizes[6];
    call.scale = scale, call.dtype = static_cast<px::Dtype>(dtype), call.backward = backward;
    const auto bytes = static_cast<std::size_t>(px::cuda::squared_attention_scratch_bytes(call));
    const auto scratch = emulated::scratch_of(bytes);
    call.scratch = scratch.get();
    if (small)
      px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, emulated::stream);
    else
      px::cuda::squared_attention(call, emulated::stream);
  });
}

}  // extern "C"
