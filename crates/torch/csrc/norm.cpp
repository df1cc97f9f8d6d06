// Group norm with scale, shift, SiLU and dropout as one operation of a GPU: norm.cu, compiled by NVRTC for the GPU at hand.
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>
#include <mutex>

#include "guarded.h"
#include "norm_text.h"
#define LCSC_HOST
#include "norm.cu"

using at::Tensor;

namespace {

// What is used of CUDA's driver (cuda.h) and of NVRTC (nvrtc.h). Both lie behind the library of libtorch that is linked to them.
struct Cuda {
  int (*nvrtcCreateProgram)(void **, const char *, const char *, int, const char **, const char **);
  int (*nvrtcCompileProgram)(void *, int, const char **);
  int (*nvrtcGetProgramLogSize)(void *, size_t *);
  int (*nvrtcGetProgramLog)(void *, char *);
  int (*nvrtcGetCUBINSize)(void *, size_t *);
  int (*nvrtcGetCUBIN)(void *, char *);
  int (*nvrtcDestroyProgram)(void **);
  int (*cuGetErrorString)(int, const char **);
  int (*cuDeviceGet)(int *, int);
  int (*cuDeviceGetAttribute)(int *, int, int);
  int (*cuDevicePrimaryCtxRetain)(void **, int);
  int (*cuCtxPushCurrent)(void *);
  int (*cuCtxPopCurrent)(void **);
  int (*cuModuleLoadData)(void **, const void *);
  int (*cuModuleGetFunction)(void **, void *, const char *);
  int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);

  explicit Cuda(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library, "CUDA's compiler cannot be opened: ", dlerror());
    auto find = [&](auto &function, const char *name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      TORCH_CHECK(function, path, " has no ", name);
    };
    find(nvrtcCreateProgram, "nvrtcCreateProgram");
    find(nvrtcCompileProgram, "nvrtcCompileProgram");
    find(nvrtcGetProgramLogSize, "nvrtcGetProgramLogSize");
    find(nvrtcGetProgramLog, "nvrtcGetProgramLog");
    find(nvrtcGetCUBINSize, "nvrtcGetCUBINSize");
    find(nvrtcGetCUBIN, "nvrtcGetCUBIN");
    find(nvrtcDestroyProgram, "nvrtcDestroyProgram");
    find(cuGetErrorString, "cuGetErrorString");
    find(cuDeviceGet, "cuDeviceGet");
    find(cuDeviceGetAttribute, "cuDeviceGetAttribute");
    find(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    // The names that cuda.h gives these two today.
    find(cuCtxPushCurrent, "cuCtxPushCurrent_v2");
    find(cuCtxPopCurrent, "cuCtxPopCurrent_v2");
    find(cuModuleLoadData, "cuModuleLoadData");
    find(cuModuleGetFunction, "cuModuleGetFunction");
    find(cuLaunchKernel, "cuLaunchKernel");
  }

  void check(int status, const char *during) const {
    if (!status) return;
    const char *why = nullptr;
    cuGetErrorString(status, &why);
    TORCH_CHECK(false, "CUDA failed ", during, ": ", why ? why : "unknown error");
  }
};

std::string cuda_path;

const Cuda &cuda() {
  static const Cuda cuda(cuda_path.c_str());
  return cuda;
}

// `norm.cu` for a GPU and a type, as what the driver loads.
std::vector<char> compiled(int major, int minor, int value) {
  auto &c = cuda();
  void *program = nullptr;
  TORCH_CHECK(!c.nvrtcCreateProgram(&program, kNormText, "norm.cu", 0, nullptr, nullptr), "NVRTC takes no program");
  auto architecture = "--gpu-architecture=sm_" + std::to_string(10 * major + minor);
  auto type = "--define-macro=VALUE=" + std::to_string(value);
  const char *options[] = {architecture.c_str(), type.c_str(), "--std=c++17"};
  int status = c.nvrtcCompileProgram(program, 3, options);
  size_t size = 0;
  if (status) {
    c.nvrtcGetProgramLogSize(program, &size);
    std::string log(size, ' ');
    c.nvrtcGetProgramLog(program, log.data());
    c.nvrtcDestroyProgram(&program);
    TORCH_CHECK(false, "NVRTC cannot compile norm.cu for ", architecture, ": ", log);
  }
  c.nvrtcGetCUBINSize(program, &size);
  std::vector<char> binary(size);
  status = c.nvrtcGetCUBIN(program, binary.data());
  c.nvrtcDestroyProgram(&program);
  TORCH_CHECK(!status, "NVRTC gives no program for ", architecture);
  return binary;
}

int value_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return 0;
    case at::kBFloat16: return 1;
    case at::kHalf: return 2;
    default: TORCH_CHECK(false, "the fused group norm has no kernel for ", type);
  }
}

// A GPU's kernels for a type, loaded once and never given back.
struct Kernels {
  void *context = nullptr, *forward = nullptr, *backward = nullptr;

  Kernels(int index, int value) {
    auto &c = cuda();
    int device = 0, major = 0, minor = 0;
    c.check(c.cuDeviceGet(&device, index), "asking for the GPU");
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    c.check(c.cuDeviceGetAttribute(&major, 75, device), "asking for the GPU's architecture");
    c.check(c.cuDeviceGetAttribute(&minor, 76, device), "asking for the GPU's architecture");
    // The context of libtorch, which is that of CUDA's runtime.
    c.check(c.cuDevicePrimaryCtxRetain(&context, device), "asking for the GPU's context");
    auto binary = compiled(major, minor, value);
    within([&] {
      void *module = nullptr;
      c.check(c.cuModuleLoadData(&module, binary.data()), "loading norm.cu");
      c.check(c.cuModuleGetFunction(&forward, module, "norm_forward"), "loading norm.cu");
      c.check(c.cuModuleGetFunction(&backward, module, "norm_backward"), "loading norm.cu");
    });
  }

  template <typename Work>
  void within(Work work) const {
    struct Popped {
      ~Popped() {
        void *context = nullptr;
        cuda().cuCtxPopCurrent(&context);
      }
    };
    cuda().check(cuda().cuCtxPushCurrent(context), "entering the GPU's context");
    Popped popped;
    work();
  }

  static const Kernels &of(at::Device device, at::ScalarType type) {
    static std::mutex mutex;
    static std::map<std::pair<int, int>, Kernels> all;
    std::lock_guard<std::mutex> lock(mutex);
    std::pair<int, int> key{device.index(), value_of(type)};
    auto found = all.find(key);
    if (found == all.end()) found = all.emplace(key, Kernels(key.first, key.second)).first;
    return found->second;
  }
};

void launch(const Tensor &x, int64_t groups, bool is_forward, Norm norm) {
  auto &kernels = Kernels::of(x.device(), x.scalar_type());
  void *stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(x.device()).native_handle();
  void *arguments[] = {&norm};
  kernels.within([&] {
    // As many threads as norm.cu says.
    cuda().check(cuda().cuLaunchKernel(is_forward ? kernels.forward : kernels.backward, groups, x.size(0), 1, 256, 1, 1, 0, stream,
                                       arguments, nullptr),
                 "starting the fused group norm");
  });
}

at::MemoryFormat format_of(const Tensor &x) {
  return x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

const void *address(const std::optional<Tensor> &tensor) {
  return tensor && tensor->defined() ? tensor->const_data_ptr() : nullptr;
}

Norm described(const Tensor &x, const Tensor &weight, const Tensor &bias, const std::optional<Tensor> &scale,
               const std::optional<Tensor> &shift, const std::optional<Tensor> &seed, double dropout, int64_t groups, double eps,
               bool silu) {
  Norm norm{};
  norm.x = x.const_data_ptr(), norm.weight = weight.const_data_ptr(), norm.bias = bias.const_data_ptr();
  norm.scale = address(scale), norm.shift = address(shift);
  norm.seed = static_cast<const long *>(address(seed)), norm.keep = 1 - dropout;
  norm.eps = eps, norm.channels = x.size(1), norm.channels_per_group = x.size(1) / groups, norm.pixels = x.size(2) * x.size(3);
  norm.channels_last = format_of(x) == at::MemoryFormat::ChannelsLast, norm.silu = silu;
  return norm;
}

struct FusedNorm : torch::autograd::Function<FusedNorm> {
  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &given, const Tensor &weight, const Tensor &bias,
                        const std::optional<Tensor> &scale, const std::optional<Tensor> &shift, const std::optional<Tensor> &seed,
                        double dropout, int64_t groups, double eps, bool silu) {
    auto x = given.contiguous(format_of(given));
    auto y = at::empty_like(x);
    auto statistics = x.options().dtype(at::kFloat);
    auto mean = at::empty({x.size(0), groups}, statistics), rstd = at::empty_like(mean);
    auto norm = described(x, weight, bias, scale, shift, seed, dropout, groups, eps, silu);
    norm.y = y.data_ptr(), norm.mean = mean.data_ptr<float>(), norm.rstd = rstd.data_ptr<float>();
    launch(x, groups, true, norm);
    auto given_or_none = [](const std::optional<Tensor> &tensor) { return tensor.value_or(Tensor()); };
    context->save_for_backward({x, weight, bias, given_or_none(scale), given_or_none(shift), given_or_none(seed), mean, rstd});
    context->saved_data["dropout"] = dropout;
    context->saved_data["groups"] = groups;
    context->saved_data["eps"] = eps;
    context->saved_data["silu"] = silu;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the fused group norm has no second derivative");
    auto saved = context->get_saved_variables();
    auto &x = saved[0], &weight = saved[1], &bias = saved[2], &scale = saved[3];
    auto &kept = context->saved_data;
    auto grad_y = gradients[0].to(x.scalar_type()).contiguous(format_of(x));
    auto grad_x = at::empty_like(x);
    auto sum = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kFloat)), sum_x = at::empty_like(sum);
    auto groups = kept["groups"].toInt();
    auto norm = described(x, weight, bias, scale, saved[4], saved[5], kept["dropout"].toDouble(), groups, kept["eps"].toDouble(),
                          kept["silu"].toBool());
    norm.grad_y = grad_y.const_data_ptr(), norm.grad_x = grad_x.data_ptr();
    norm.mean = saved[6].data_ptr<float>(), norm.rstd = saved[7].data_ptr<float>();
    norm.sum = sum.data_ptr<float>(), norm.sum_x = sum_x.data_ptr<float>();
    launch(x, groups, false, norm);
    Tensor grad_scale, grad_shift;
    auto of_weight = sum_x, of_bias = sum;
    if (scale.defined()) {
      // z = (normalized · w + b) · (1 + scale) + shift
      grad_scale = (sum_x * weight + sum * bias).to(scale.scalar_type());
      grad_shift = sum.to(scale.scalar_type());
      auto factor = scale.to(at::kFloat) + 1;
      of_weight = sum_x * factor, of_bias = sum * factor;
    }
    return {grad_x, of_weight.sum(0).to(weight.scalar_type()), of_bias.sum(0).to(bias.scalar_type()), grad_scale, grad_shift,
            Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// Where CUDA's compiler and driver are found when they are first needed.
void lcsc_set_cuda_path(const char *path) { cuda_path = path; }

// dropout(silu(group_norm(x)·(1 + scale) + shift)), with parts that may be left out; x [B,C,H,W], weight and bias [C], scale and
// shift [B,C].
char *lcsc_group_norm(Tensor *x, Tensor *weight, Tensor *bias, Tensor *scale, Tensor *shift, int64_t groups, double eps, bool silu,
                      double dropout, Tensor **out) {
  return guarded([&] {
    auto optional = [](Tensor *t) { return t ? std::optional<Tensor>(t->contiguous()) : std::nullopt; };
    for (auto *t : {weight, bias, scale, shift}) {
      TORCH_CHECK(!t || (t->scalar_type() == x->scalar_type() && t->device() == x->device()),
                  "the fused group norm takes tensors of one type and one device");
    }
    TORCH_CHECK(x->is_cuda() && x->dim() == 4 && x->numel() > 0 && x->size(0) < 65536, "no fused group norm of ", x->sizes(), " on ",
                x->device());
    int64_t images = x->size(0), channels = x->size(1);
    TORCH_CHECK(groups > 0 && channels % groups == 0 && channels / groups <= 256, "no fused group norm of ", channels, " channels in ",
                groups, " groups");
    TORCH_CHECK(weight->numel() == channels && bias->numel() == channels, "a weight and a bias for each of ", channels, " channels");
    TORCH_CHECK(!scale == !shift && (!scale || (scale->numel() == images * channels && shift->numel() == images * channels)),
                "a scale and a shift for each of ", images, " images and ", channels, " channels");
    TORCH_CHECK(dropout >= 0 && dropout < 1, "no dropout of ", dropout);
    c10::DeviceGuard guard(x->device());
    std::optional<Tensor> seed;
    // Drawn on the GPU, for which the host does not wait.
    if (dropout > 0) seed = at::empty({1}, x->options().dtype(at::kLong)).random_();
    *out = new Tensor(FusedNorm::apply(*x, weight->contiguous(), bias->contiguous(), optional(scale), optional(shift), seed, dropout, groups,
                                       eps, silu));
  });
}

}
