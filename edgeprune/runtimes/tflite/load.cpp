// Loads this release with LiteRT's C++ API. Build: c++ -std=c++17 load.cpp -ltensorflow-lite
#include <tensorflow/lite/interpreter.h>
#include <tensorflow/lite/kernels/register.h>
#include <tensorflow/lite/model.h>

#include <algorithm>
#include <iostream>
#include <memory>

int main() {
  auto model = tflite::FlatBufferModel::BuildFromFile("current/model.tflite");
  tflite::ops::builtin::BuiltinOpResolver resolver;  // applies XNNPACK by default
  std::unique_ptr<tflite::Interpreter> interpreter;
  tflite::InterpreterBuilder(*model, resolver)(&interpreter, 1);  // "threads" in manifest.json
  interpreter->AllocateTensors();
  auto* input = interpreter->input_tensor(0);
  std::fill_n(interpreter->typed_input_tensor<float>(0), input->bytes / sizeof(float), 0.0f);
  interpreter->Invoke();
  std::cout << interpreter->typed_output_tensor<float>(0)[0] << "\n";
}
