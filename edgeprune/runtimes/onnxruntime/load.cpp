// Loads this release with ONNX Runtime's C++ API. Build: c++ -std=c++17 load.cpp -lonnxruntime
#include <onnxruntime_cxx_api.h>

#include <iostream>
#include <numeric>
#include <vector>

int main() {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "release");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);  // "threads" in manifest.json
  Ort::Session session(env, "current/model.onnx", options);
  Ort::AllocatorWithDefaultOptions allocator;
  auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  std::vector<float> values(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto tensor = Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
  const char* inputs[] = {input.get()};
  const char* outputs[] = {output.get()};
  auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
  std::cout << results[0].GetTensorData<float>()[0] << "\n";
}
