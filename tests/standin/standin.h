// A CUDA device that is none, to test on machines without one: see README.md.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/boxing/KernelFunction.h>

#include <cstddef>
#include <functional>

namespace standin {

// Devices that there are.
constexpr int kDevices = 2;

// The device that this thread uses where nothing else is said.
int &current_device();

// Device memory has an address that the host must not touch, and one under which kernels find it.
at::Allocator *allocator();
void *host_address(const void *device_address);

// What was asked for without waiting is done at the next wait.
void later(std::function<void()> work);
// The host waits for the device; counted.
void wait();

// While a graph is recorded: keeps what was done, to do it again.
void record(std::function<void()> work);
bool is_recording();

// The same values as a tensor of the CPU, without a copy.
at::Tensor as_cpu(const at::Tensor &tensor);
at::Tensor empty_on_device(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType type, int index);

// Fails where a GPU would fail or be slow; `arguments` are those of the operator.
void check(const c10::OperatorHandle &op, const std::vector<c10::IValue> &arguments);
// Whether an operator's result has a shape, or is a value on the host, that the device has to tell first.
bool waits_for_device(const c10::OperatorHandle &op, const std::vector<c10::IValue> &arguments);
// The choice between libtorch's kernels of attention.
int64_t attention_kernel(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const std::optional<at::Tensor> &mask,
                         double dropout, bool causal, std::optional<double> scale, bool grouped);
// Notes that an operator ran on a device.
void note_work(int index);

}  // namespace standin
