// What was built, for `pxfast doctor`. The operators stand in the files beside this one.
#include "binding/memory.h"
#include "cpu/isa.h"
#include "device.h"

namespace px::binding {

namespace {

std::string version() { return PXFAST_VERSION; }

std::string cpu_isa() { return px::cpu::name(px::cpu::isa()); }

std::string cuda_status() {
#ifdef PX_WITH_CUDA
  return "built for " PXFAST_CUDA_ARCHS "; " + px::cuda::device_status();
#else
  return "not built";
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pxfast, m) {
  m.def("version() -> str");
  m.def("cpu_isa() -> str");
  m.def("cuda_status() -> str");
  m.def("keep_memory(bool on) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pxfast, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cuda_status", TORCH_BOX(&cuda_status));
  m.impl("keep_memory", TORCH_BOX(&keep_memory));
}

}  // namespace px::binding
