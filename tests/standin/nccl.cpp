// NCCL: collectives on the tensors of a device, by Gloo on its memory as kernels find it.
#include "standin.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstring>

namespace {

using c10d::Work;
using Tensors = std::vector<at::Tensor>;

struct Collectives : c10d::Backend {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  int device;

  Collectives(c10::intrusive_ptr<c10d::Store> store, int rank, int size, int device, int64_t timeout_ms)
      : Backend(rank, size), device(device) {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    auto own = c10::make_intrusive<c10d::PrefixStore>("nccl", std::move(store));
    gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size, options);
  }

  const std::string getBackendName() const override { return "stand-in"; }

  at::Tensor on_host(const at::Tensor &tensor) const {
    TORCH_CHECK(tensor.is_cuda() && tensor.device().index() == device, "a collective of cuda:", device, " on ", tensor.device());
    TORCH_CHECK(tensor.is_contiguous(), "a collective takes contiguous tensors");
    standin::note_work(device);
    return standin::as_cpu(tensor);
  }

  c10::intrusive_ptr<Work> allreduce(Tensors &tensors, const c10d::AllreduceOptions &options) override {
    Tensors host{on_host(tensors.at(0))};
    return gloo->allreduce(host, options);
  }
  c10::intrusive_ptr<Work> broadcast(Tensors &tensors, const c10d::BroadcastOptions &options) override {
    Tensors host{on_host(tensors.at(0))};
    return gloo->broadcast(host, options);
  }
  c10::intrusive_ptr<Work> _allgather_base(at::Tensor &all, at::Tensor &own, const c10d::AllgatherOptions &options) override {
    auto to = on_host(all), from = on_host(own);
    return gloo->_allgather_base(to, from, options);
  }
  void abort() override { gloo->abort(); }
  void shutdown() override { gloo->shutdown(); }
};

}  // namespace

extern "C" char *lcsc_group_nccl(c10d::Store *store, int rank, int size, int device, int64_t timeout_ms, c10d::Backend **out) {
  try {
    auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(store);
    *out = c10::make_intrusive<Collectives>(shared, rank, size, device, timeout_ms).release();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}
