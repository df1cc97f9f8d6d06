// What libtorch has and tch does not.
#include <ATen/Context.h>
#include <ATen/ops/_fused_adam.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guarded.h"

extern "C" {

// Convolutions and recurrent layers (cuDNN) and products (cuBLAS) have settings of their own, which that of all does not reach.
char *lcsc_allow_tf32(bool allow) {
  return guarded([&] {
    auto &context = at::globalContext();
    // The older setting of products has to agree; on the CPU it would change their arithmetic, too.
    auto on_cpu = context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
    context.setFloat32MatmulPrecision(allow ? "high" : "highest");
    context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL, on_cpu);
    auto precision = allow ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    for (auto op : {at::Float32Op::ALL, at::Float32Op::CONV, at::Float32Op::RNN, at::Float32Op::MATMUL}) {
      context.setFloat32Precision(at::Float32Backend::CUDA, op, precision);
    }
  });
}

// While one is alive this thread's products of f32 are not rounded to TF32.
at::NoTF32Guard *lcsc_exact_products_begin() { return new at::NoTF32Guard; }
void lcsc_exact_products_end(at::NoTF32Guard *guard) { delete guard; }
bool lcsc_products_are_exact() { return at::NoTF32Guard::should_disable_tf32(); }

// Either the fastest kernels of cuDNN, tried for each shape, or those that give the same bits each time.
char *lcsc_choose_kernels(bool deterministic) {
  return guarded([&] {
    auto &context = at::globalContext();
    context.setBenchmarkCuDNN(!deterministic);
    context.setDeterministicCuDNN(deterministic);
    // Operations that have no such kernel only warn.
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/true);
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// The GPU that this thread uses where nothing else is said: else libtorch would touch the first one, too.
char *lcsc_use_device(int index) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(c10::kCUDA).setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index)));
  });
}

// Bytes in use on a GPU by all processes.
char *lcsc_used_memory(int index, uint64_t *used) {
  return guarded([&] {
    auto [free, total] = c10::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(index));
    *used = total - free;
  });
}

// Memory of freed tensors goes from libtorch back to the GPUs.
char *lcsc_empty_cache() {
  return guarded([] { c10::getDeviceAllocator(at::kCUDA)->emptyCache(); });
}

char *lcsc_fused_adam(at::Tensor *theta, at::Tensor *grad, at::Tensor *exp_avg, at::Tensor *exp_avg_sq, at::Tensor *steps,
                      double lr, double beta1, double beta2, double eps, at::Tensor *divisor, at::Tensor *left_out) {
  return guarded([&] {
    auto optional = divisor ? std::optional<at::Tensor>(*divisor) : std::nullopt;
    at::_fused_adam_({*theta}, {*grad}, {*exp_avg}, {*exp_avg_sq}, {}, {*steps}, lr, beta1, beta2, /*weight_decay=*/0.0, eps,
                     /*amsgrad=*/false, /*maximize=*/false, optional, *left_out);
  });
}

// What libtorch's kernels ask for, as a bit each: convolutions, recurrent layers, products; and products of the CPU.
char *lcsc_tf32_bits(int *bits) {
  return guarded([&] {
    auto &context = at::globalContext();
    *bits = context.allowTF32CuDNN(at::Float32Op::CONV) | context.allowTF32CuDNN(at::Float32Op::RNN) << 1 |
            context.allowTF32CuBLAS() << 2 |
            (context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL) == at::Float32Precision::TF32) << 3;
  });
}

// cuDNN's benchmark, its deterministic kernels, deterministic algorithms, as a bit each.
int lcsc_kernel_bits() {
  auto &context = at::globalContext();
  return context.benchmarkCuDNN() | context.deterministicCuDNN() << 1 | context.deterministicAlgorithms() << 2;
}

}
