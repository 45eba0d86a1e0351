// Loads this release with ExecuTorch's C++ API, which is in the package of pip (executorch/share/cmake). Build it with CMake:
// find_package(executorch), and link executorch::runtime, executorch::kernels_optimized and executorch::backend_xnnpack.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <iostream>
#include <vector>

using namespace executorch::extension;

int main() {
  Module module("current/model.pte");
  auto meta = module.method_meta("forward");
  auto shape = meta->input_tensor_meta(0)->sizes();
  auto input = zeros({shape.begin(), shape.end()});  // "threads" in manifest.json: threadpool::get_threadpool()
  auto outputs = module.forward(input);
  if (!outputs.ok()) return 1;
  std::cout << outputs->at(0).toTensor().const_data_ptr<float>()[0] << "\n";
}
