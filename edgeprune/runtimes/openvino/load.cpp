// Loads this release with OpenVINO's C++ API. Build: c++ -std=c++17 load.cpp -lopenvino
#include <openvino/openvino.hpp>

#include <iostream>

int main() {
  ov::Core core;
  auto model = core.read_model("current/model.xml");
  auto compiled = core.compile_model(
      model, "CPU", ov::num_streams(1), ov::inference_num_threads(1),  // "threads" in manifest.json
      ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
      ov::hint::inference_precision(ov::element::f32));  // f16 where "precision" there is fp16
  auto request = compiled.create_infer_request();
  ov::Tensor input = request.get_input_tensor(0);
  std::fill_n(input.data<float>(), input.get_size(), 0.0f);
  request.infer();
  std::cout << request.get_output_tensor(0).data<float>()[0] << "\n";
}
