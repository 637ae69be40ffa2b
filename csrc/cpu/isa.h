// Instruction sets that the CPU kernels are compiled for. Every kernel file csrc/cpu/<op>.cpp is compiled
// once for each of them, with PX_ISA naming the namespace its code goes to; the best one that the processor
// has is chosen at run time.
#pragma once

namespace px::cpu {

enum class Isa : int { base, avx2, avx512 };

// The best instruction set of this processor, capped by the environment variable PXFAST_CPU_ISA (base, avx2,
// avx512), which the tests use; read at every call. Throws std::runtime_error where that variable holds
// anything else.
Isa isa();

const char* name(Isa isa);

}  // namespace px::cpu
