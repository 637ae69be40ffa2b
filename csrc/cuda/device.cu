// device.h on CUDA.
#include "device.h"

#include <cuda_runtime.h>

namespace px::cuda {

namespace {

std::string version(int number) {
  return number == 0 ? "none" : std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string devices(int driver) {
  if (driver == 0) return "no NVIDIA driver";
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  std::string names;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) == cudaSuccess)
      names += (i > 0 ? ", " : ": ") + std::string(properties.name) + " (" +
               std::to_string(properties.major) + "." + std::to_string(properties.minor) + ")";
  }
  return std::to_string(count) + (count == 1 ? " device" : " devices") + names;
}

}  // namespace

std::string device_status() {
  int runtime = 0, driver = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  (void)cudaDriverGetVersion(&driver);
  const std::string status =
      devices(driver) + " (runtime " + version(runtime) + ", driver " + version(driver) + ")";
  (void)cudaGetLastError();
  return status;
}

}  // namespace px::cuda
