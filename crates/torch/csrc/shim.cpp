// What libtorch has and tch does not.
#include <ATen/Context.h>
#include <ATen/ops/_fused_adam.h>

#include "guarded.h"

extern "C" {

char *lcsc_allow_tf32(bool allow) {
  return guarded([&] {
    auto precision = allow ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::ALL, precision);
  });
}

char *lcsc_fused_adam(at::Tensor *theta, at::Tensor *grad, at::Tensor *exp_avg, at::Tensor *exp_avg_sq, at::Tensor *steps,
                      double lr, double beta1, double beta2, double eps, at::Tensor *divisor, at::Tensor *left_out) {
  return guarded([&] {
    auto optional = divisor ? std::optional<at::Tensor>(*divisor) : std::nullopt;
    at::_fused_adam_({*theta}, {*grad}, {*exp_avg}, {*exp_avg_sq}, {}, {*steps}, lr, beta1, beta2, /*weight_decay=*/0.0, eps,
                     /*amsgrad=*/false, /*maximize=*/false, optional, *left_out);
  });
}

bool lcsc_allows_tf32() {
  auto of = [](at::Float32Op op) { return at::globalContext().float32Precision(at::Float32Backend::CUDA, op); };
  return of(at::Float32Op::CONV) == at::Float32Precision::TF32 && of(at::Float32Op::MATMUL) == at::Float32Precision::TF32;
}

}
