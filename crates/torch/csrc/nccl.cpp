// Collectives on tensors of a GPU. A library of its own, built where CUDA's headers are and opened beside libtorch_cuda: the
// program itself needs neither. See scripts/build_cuda.sh.
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "guarded.h"

extern "C" __attribute__((visibility("default"))) char *lcsc_group_nccl(c10d::Store *store, int rank, int size, int device,
                                                                        int64_t timeout_ms, c10d::Backend **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(store);
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(shared, rank, size, options);
    // All ranks connect now, not at the first step.
    group->eagerConnectSingleDevice(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    *out = group.release();
  });
}
