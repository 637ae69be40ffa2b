// squared_linear on the CPU: which kernels a call takes, and how it is cut into tasks. Compiled once per
// instruction set; PX_ISA names the namespace.
#include "squared_linear.h"

#include "cpu/squared_linear_product.h"
#include "cpu/squared_linear_stream.h"

namespace px::cpu::PX_ISA {

namespace {

// The most rows of x for which the weight streams by, measured.
constexpr int64_t forward_rows = vector_registers == 32 ? 32 : 8;
constexpr int64_t backward_rows = 32;
constexpr int64_t worth_a_thread = 1 << 15;  // multiply-adds

int64_t grain(int64_t work) { return work > 0 && work < worth_a_thread ? worth_a_thread / work : 1; }

template <class weight>
struct Kernels {
  using path = Path<weight>;

  static Plan plan(const SquaredLinear& call) {
    if (call.T == 0) return {};
    if (call.T <= forward_rows) {
      return {{ceil_div(call.O, forward_block), 0}, {grain(call.T * forward_block * call.K), 1}, 0};
    }
    return {{Grid<path>(call.T, call.O, call.threads).tasks(), 0}, {1, 1}, 0};
  }

  static void run(const SquaredLinear& call, int, int64_t begin, int64_t end) {
    const Forward<weight> f(call);
    if (call.T <= forward_rows) {
      for (int64_t task = begin; task < end; ++task) stream_forward(f, task);
    } else {
      const Grid<path> grid(call.T, call.O, call.threads);
      product(ForwardOperands<weight>{f}, grid, call.K, begin, end);
    }
  }

  static Plan plan_backward(const SquaredLinearBackward& call) {
    if (call.T == 0) return {};
    const bool with_dx = call.dx != nullptr;
    if (call.T <= backward_rows) {
      const int64_t block = backward_block(call.T, call.O), blocks = backward_blocks(call.T, call.O);
      return {{blocks, with_dx ? ceil_div(call.T * call.K, chunk) : 0},
              {grain(call.T * block * call.K), grain(chunk * blocks)},
              blocks * call.T * call.K * sizeof(path)};
    }
    return {{with_dx ? Grid<path>(call.T, call.K, call.threads).tasks() : 0,
             Grid<path>(call.O, call.K, call.threads).tasks()},
            {1, 1},
            0};
  }

  static void run_backward(const SquaredLinearBackward& call, int step, int64_t begin, int64_t end) {
    const Backward<weight> b(call);
    if (call.T <= backward_rows) {
      const auto kernel = step == 0 ? stream_backward<weight> : sum_blocks<weight>;
      for (int64_t task = begin; task < end; ++task) kernel(b, task);
    } else if (step == 0) {
      product(InputOperands<weight>{b}, Grid<path>(call.T, call.K, call.threads), call.O, begin, end);
    } else {
      product(SaliencyOperands<weight>{b}, Grid<path>(call.O, call.K, call.threads), call.T, begin, end);
    }
  }
};

constexpr SquaredLinearKernels kernels_of(Dtype dtype) {
  const auto of = [](auto kernels) {
    return SquaredLinearKernels{kernels.plan, kernels.run, kernels.plan_backward, kernels.run_backward};
  };
  switch (dtype) {
    case Dtype::f64:
      return of(Kernels<double>{});
    case Dtype::bf16:
      return of(Kernels<bf16>{});
    case Dtype::f16:
      return of(Kernels<f16>{});
    default:
      return of(Kernels<float>{});
  }
}

}  // namespace

constexpr SquaredLinearKernels squared_linear{
    [](const SquaredLinear& call) { return kernels_of(call.weight_dtype).plan(call); },
    [](const SquaredLinear& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run(call, step, begin, end);
    },
    [](const SquaredLinearBackward& call) { return kernels_of(call.weight_dtype).plan_backward(call); },
    [](const SquaredLinearBackward& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run_backward(call, step, begin, end);
    },
};

}  // namespace px::cpu::PX_ISA
