// Every kernel is the CPU's, on the same memory.
#include "standin.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorIterator.h>
#include <ATen/native/Copy.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;

namespace standin {

Tensor as_cpu(const Tensor &tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
  if (tensor.numel() == 0 || !tensor.storage().data()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  c10::Storage kept = tensor.storage();
  return at::from_blob(host_address(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), [kept](void *) {}, options);
}

Tensor empty_on_device(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType type, int index) {
  c10::DeviceGuard guard(Device(DeviceType::CUDA, index));
  return at::detail::empty_strided_generic(size, stride, allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), type);
}

namespace {

Tensor as_device(const Tensor &tensor, int index) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  auto dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
  auto moved = empty_on_device(dense.sizes(), dense.strides(), dense.scalar_type(), index);
  as_cpu(moved).copy_(dense);
  return moved;
}

// Calls `with` for each tensor among the values.
template <typename With>
void each_tensor(const std::vector<IValue> &values, With with) {
  for (auto &value : values) {
    if (value.isTensor()) {
      with(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor &t : value.toTensorVector()) with(t);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor> &t : value.toOptionalTensorList()) {
        if (t) with(*t);
      }
    }
  }
}

// The device of the arguments, which has to be one; -1 where they have none. Indices may lie on the CPU, and numbers.
int device_of(const c10::OperatorHandle &op, const std::vector<IValue> &arguments) {
  const auto &name = op.schema().operator_name().name;
  bool takes_host_index = name == "aten::index" || name == "aten::index_put_" || name == "aten::index_put" || name == "aten::_index_put_impl_";
  int index = -1;
  bool has_host_tensor = false;
  each_tensor(arguments, [&](const Tensor &t) {
    if (!t.defined()) return;
    if (!t.is_cuda()) {
      has_host_tensor |= t.dim() > 0;
      return;
    }
    TORCH_CHECK(index < 0 || index == t.device().index(), "two CUDA devices in ", name);
    index = t.device().index();
  });
  TORCH_CHECK(!has_host_tensor || takes_host_index, "Expected all tensors to be on the same device, in ", name);
  for (auto &value : arguments) {
    if (index < 0 && value.isDevice() && value.toDevice().is_cuda()) index = std::max<int>(value.toDevice().index(), 0);
  }
  return index;
}

IValue value_as_cpu(const IValue &value) {
  if (value.isTensor()) return as_cpu(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor &t : value.toTensorVector()) list.push_back(as_cpu(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor> &t : value.toOptionalTensorList()) list.push_back(t ? std::optional(as_cpu(*t)) : std::nullopt);
    return list;
  }
  if (value.isDevice()) return Device(DeviceType::CPU);
  if (value.isGenerator()) return IValue();
  return value;
}

IValue value_as_device(const IValue &value, int index) {
  if (value.isTensor()) return as_device(value.toTensor(), index);
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor &t : value.toTensorVector()) list.push_back(as_device(t, index));
    return list;
  }
  return value;
}

// Arguments that the CPU's kernel resized have moved.
void take_back(const c10::FunctionSchema &schema, const std::vector<IValue> &ours, const std::vector<IValue> &theirs) {
  for (size_t i = 0; i < ours.size(); i++) {
    auto *alias = schema.arguments()[i].alias_info();
    if (!alias || !alias->isWrite() || !ours[i].isTensor() || !ours[i].toTensor().defined()) continue;
    const Tensor &to = ours[i].toTensor(), &from = theirs[i].toTensor();
    bool has_moved = from.sizes() != to.sizes() || (from.numel() && from.const_data_ptr() != host_address(to.const_data_ptr()));
    if (to.is_cuda() && has_moved) {
      const_cast<Tensor &>(to).resize_(from.sizes());
      as_cpu(to).copy_(from);
    }
  }
}

// Does again what an operator did: with its arguments, whose memory stays, into its results.
void run_again(const c10::OperatorHandle &op, std::vector<IValue> arguments, const std::vector<IValue> &results) {
  torch::jit::Stack stack = std::move(arguments);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  std::vector<Tensor> to, from;
  each_tensor(results, [&](const Tensor &t) { to.push_back(as_cpu(t)); });
  each_tensor(stack, [&](const Tensor &t) { from.push_back(t); });
  for (size_t i = 0; i < to.size(); i++) {
    if (to[i].defined() && to[i].const_data_ptr() != from[i].const_data_ptr()) to[i].copy_(from[i]);
  }
}

// Any operator that needs a kernel.
void fallback(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &schema = op.schema();
  size_t n = schema.arguments().size(), begin = stack->size() - n;
  std::vector<IValue> ours(stack->begin() + begin, stack->end());
  check(op, ours);
  int index = device_of(op, ours);
  if (index < 0) index = current_device();
  note_work(index);
  if (waits_for_device(op, ours)) wait();
  std::vector<IValue> theirs;
  for (auto &value : ours) theirs.push_back(value_as_cpu(value));
  stack->erase(stack->begin() + begin, stack->end());
  stack->insert(stack->end(), theirs.begin(), theirs.end());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  take_back(schema, ours, theirs);
  size_t results = schema.returns().size();
  for (size_t i = 0; i < results; i++) {
    IValue &value = (*stack)[stack->size() - results + i];
    auto *returned = schema.returns()[i].alias_info();
    if (!returned) {
      value = value_as_device(value, index);
      continue;
    }
    TORCH_CHECK(returned->isWrite() || !value.isTensor(), "a view is no work for a kernel: ", schema.operator_name());
    for (size_t j = 0; j < n; j++) {
      auto *alias = schema.arguments()[j].alias_info();
      if (alias && *alias == *returned) {
        value = ours[j];
        break;
      }
    }
  }
  if (!is_recording()) return;
  // What an operator writes to has its final size now.
  for (size_t i = 0; i < n; i++) {
    auto *alias = schema.arguments()[i].alias_info();
    if (alias && alias->isWrite()) theirs[i] = value_as_cpu(ours[i]);
  }
  std::vector<IValue> made(stack->end() - results, stack->end());
  record([op, theirs, made] { run_again(op, theirs, made); });
}

// To the host it arrives at the next wait, unless the host waits for it now.
void copy(at::TensorIterator &iterator, bool non_blocking) {
  Tensor to = iterator.output(), from = iterator.input(0);
  if (from.is_cuda() && to.is_cpu()) {
    if (non_blocking) {
      Tensor now = as_cpu(from).to(to.scalar_type()).clone();
      if (to.is_floating_point()) to.fill_(NAN);
      later([to, now] { to.copy_(now); });
      return;
    }
  }
  // Between host and device CUDA's copy waits unless it is told not to.
  if (!non_blocking && to.device().type() != from.device().type()) wait();
  TORCH_CHECK(!is_recording() || to.device().type() == from.device().type(), "a graph is recorded: nothing may come from the host");
  note_work(to.is_cuda() ? to.device().index() : from.device().index());
  auto work = [to = as_cpu(to), from = as_cpu(from)] { to.copy_(from); };
  work();
  record(work);
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), type.value_or(at::kFloat), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                     std::optional<c10::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return empty_on_device(size, stride, type.value_or(at::kFloat), current_device());
}

c10::Scalar scalar(const Tensor &tensor) {
  wait();
  return at::_local_scalar_dense(as_cpu(tensor));
}

const Tensor &resize(const Tensor &tensor, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  size_t needed = (tensor.storage_offset() + tensor.numel()) * tensor.element_size();
  auto storage = tensor.storage();
  if (storage.nbytes() < needed) {
    c10::DeviceGuard guard(tensor.device());
    auto larger = allocator()->allocate(needed);
    if (storage.nbytes()) memcpy(host_address(larger.get()), host_address(storage.data()), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(larger));
    storage.set_nbytes(needed);
  }
  return tensor;
}

Tensor &set_source(Tensor &tensor, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

Tensor view(const Tensor &tensor, c10::IntArrayRef size) { return at::native::view(tensor, size); }

struct Setup {
  Setup() {
    c10::SetAllocator(DeviceType::CUDA, allocator());
    at::native::copy_stub.set_cuda_dispatch_ptr(&copy);
    at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_kernel);
  }
} setup;

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_local_scalar_dense", scalar);
  m.impl("resize_", resize);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage_storage_offset", set_source);
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace
}  // namespace standin
