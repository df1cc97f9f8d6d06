// What libtorch has and tch does not.
#include <ATen/Context.h>

#include <cstring>
#include <exception>

namespace {

// Null, or the message of the exception that `work` ended with, which the caller frees.
template <typename Work>
char *guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}

}  // namespace

extern "C" {

char *lcsc_allow_tf32(bool allow) {
  return guarded([&] {
    auto precision = allow ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::ALL, precision);
  });
}

bool lcsc_allows_tf32() {
  auto of = [](at::Float32Op op) { return at::globalContext().float32Precision(at::Float32Backend::CUDA, op); };
  return of(at::Float32Op::CONV) == at::Float32Precision::TF32 && of(at::Float32Op::MATMUL) == at::Float32Precision::TF32;
}

}
