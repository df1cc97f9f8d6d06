// What would be wrong or slow on a GPU and goes unnoticed on a CPU.
#include "standin.h"

#include <ATen/SDPBackend.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <unordered_set>

namespace standin {
namespace {

// Operators that libtorch's CUDA build has kernels for; LCSC_STANDIN_OPERATORS names the list.
const std::unordered_set<std::string> &operators() {
  static const auto *names = [] {
    auto *names = new std::unordered_set<std::string>;
    const char *path = getenv("LCSC_STANDIN_OPERATORS");
    TORCH_CHECK(path, "LCSC_STANDIN_OPERATORS does not name the list of operators");
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) names->insert(line);
    TORCH_CHECK(names->size() > 1000, path, ": no list of operators");
    return names;
  }();
  return *names;
}

bool is_aligned(const at::Tensor &tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

}  // namespace

int64_t attention_kernel(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const std::optional<at::Tensor> &, double,
                         bool, std::optional<double>, bool) {
  for (auto *tensor : {&q, &k, &v}) {
    TORCH_CHECK(tensor->stride(-1) == 1, "no fused attention takes values that lie ", tensor->stride(-1), " apart");
  }
  return static_cast<int64_t>(at::SDPBackend::math);
}

void check(const c10::OperatorHandle &op, const std::vector<c10::IValue> &arguments) {
  const auto &schema = op.schema();
  auto name = toString(schema.operator_name());
  TORCH_CHECK(operators().count(name), "no CUDA kernel for ", name);
  // Weights of convolutions, and of linear layers as they reach a product.
  const auto &base = schema.operator_name().name;
  bool is_product = base == "aten::addmm" || base == "aten::mm";
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto &argument = schema.arguments()[i].name();
    if (argument != "weight" && !(is_product && argument == "mat2")) continue;
    if (!arguments[i].isTensor()) continue;
    const auto &weight = arguments[i].toTensor();
    if (!weight.defined() || weight.dim() < 2 || !weight.is_cuda()) continue;
    // A linear layer multiplies by the transposed weight; other products may be of parts of a matrix.
    if (argument == "weight" || weight.stride(0) == 1) {
      TORCH_CHECK(is_aligned(weight), "the weight of ", name, " does not begin at 16 bytes");
    }
  }
}

bool waits_for_device(const c10::OperatorHandle &op, const std::vector<c10::IValue> &arguments) {
  static const std::unordered_set<std::string> always{
      "aten::nonzero",  "aten::masked_select", "aten::equal",    "aten::_unique",           "aten::_unique2",
      "aten::bincount", "aten::unique_dim",    "aten::allclose", "aten::unique_consecutive", "aten::repeat_interleave",
  };
  const auto &name = op.schema().operator_name().name;
  if (always.count(name)) return true;
  bool is_index = name.find("aten::index") == 0 || name == "aten::_index_put_impl_";
  if (!is_index || arguments.size() < 2 || !arguments[1].isOptionalTensorList()) return false;
  // A mask becomes the places where it is true.
  for (const std::optional<at::Tensor> &t : arguments[1].toOptionalTensorList()) {
    if (t && t->defined() && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte)) return true;
  }
  return false;
}

}  // namespace standin
