// Element types that weights come in. Torch-free: kernels, launchers and bindings all use it.
#pragma once

namespace px {

enum class Dtype { f32, f64, bf16, f16 };

}  // namespace px
