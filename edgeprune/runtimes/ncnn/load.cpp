// Loads this release with ncnn's C++ API. Build: c++ -std=c++17 load.cpp -lncnn -fopenmp
#include <ncnn/net.h>

#include <cstdio>

int main() {
  ncnn::Net net;
  net.opt.num_threads = 1;  // "threads" in manifest.json; the precision is in model.param
  if (net.load_param("current/model.param") || net.load_model("current/model.bin")) return 1;
  ncnn::Extractor extractor = net.create_extractor();
  ncnn::Mat input(32, 32, 3), output;  // width, height, channels: the numbers after "Input" in model.param
  input.fill(0.0f);
  extractor.input(net.input_indexes()[0], input);
  extractor.extract(net.output_indexes()[0], output);
  std::printf("%g\n", output[0]);
}
