#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "dual_max_pool2d.h"
#include "gate.h"
#include "masked_ones.h"
#include "select_threshold.h"
#include "sparse_dual_conv2d.h"
#include "squared_attention.h"
#include "squared_conv2d.h"
#include "squared_linear.h"
#include "write_masks.h"

namespace px::cpu {

namespace {

Isa hardware() {
#ifdef PX_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::base;
#else
  return Isa::base;
#endif
}

Isa parse(const std::string& text) {
  for (const Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (text == name(isa)) return isa;
  }
  throw std::runtime_error("PXFAST_CPU_ISA must be base, avx2 or avx512, got '" + text + "'");
}

}  // namespace

Isa isa() {
  static const Isa best = hardware();
  const char* cap = std::getenv("PXFAST_CPU_ISA");
  if (cap == nullptr || *cap == '\0') return best;
  const Isa wanted = parse(cap);
  return wanted < best ? wanted : best;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "base";
  }
}

#ifdef PX_X86
#define PX_KERNELS(op) {&base::op, &avx2::op, &avx512::op}
#else
#define PX_KERNELS(op) {&base::op}
#endif

const SparseDualConv2dKernels& sparse_dual_conv2d() {
  static constexpr const SparseDualConv2dKernels* kernels[] = PX_KERNELS(sparse_dual_conv2d);
  return *kernels[static_cast<int>(isa())];
}

const DualMaxPool2dKernels& dual_max_pool2d() {
  static constexpr const DualMaxPool2dKernels* kernels[] = PX_KERNELS(dual_max_pool2d);
  return *kernels[static_cast<int>(isa())];
}

const GateKernels& gate() {
  static constexpr const GateKernels* kernels[] = PX_KERNELS(gate);
  return *kernels[static_cast<int>(isa())];
}

const MaskedOnesKernels& masked_ones() {
  static constexpr const MaskedOnesKernels* kernels[] = PX_KERNELS(masked_ones);
  return *kernels[static_cast<int>(isa())];
}

const SquaredAttentionKernels& squared_attention() {
  static constexpr const SquaredAttentionKernels* kernels[] = PX_KERNELS(squared_attention);
  return *kernels[static_cast<int>(isa())];
}

const SquaredConv2dKernels& squared_conv2d() {
  static constexpr const SquaredConv2dKernels* kernels[] = PX_KERNELS(squared_conv2d);
  return *kernels[static_cast<int>(isa())];
}

const SquaredLinearKernels& squared_linear() {
  static constexpr const SquaredLinearKernels* kernels[] = PX_KERNELS(squared_linear);
  return *kernels[static_cast<int>(isa())];
}

const SelectThresholdKernels& select_threshold() {
  static constexpr const SelectThresholdKernels* kernels[] = PX_KERNELS(select_threshold);
  return *kernels[static_cast<int>(isa())];
}

const WriteMasksKernels& write_masks() {
  static constexpr const WriteMasksKernels* kernels[] = PX_KERNELS(write_masks);
  return *kernels[static_cast<int>(isa())];
}

}  // namespace px::cpu
