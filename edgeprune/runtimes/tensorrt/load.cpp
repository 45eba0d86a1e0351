// Loads this release's engine, which was built on this device. Build: c++ -std=c++17 load.cpp -lnvinfer -lcudart
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <vector>

struct Logger : nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << text << "\n";
  }
};

int main() {
  Logger logger;
  std::ifstream file("current/engine.plan", std::ios::binary);
  std::vector<char> plan(std::istreambuf_iterator<char>(file), {});
  std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    const char* name = engine->getIOTensorName(i);
    auto shape = engine->getTensorShape(name);
    size_t bytes = sizeof(float);
    for (int d = 0; d < shape.nbDims; ++d) bytes *= shape.d[d];
    void* memory = nullptr;
    cudaMalloc(&memory, bytes);
    cudaMemset(memory, 0, bytes);
    context->setTensorAddress(name, memory);
  }
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  context->enqueueV3(stream);
  std::cout << cudaStreamSynchronize(stream) << "\n";
}
