// PyTorch's c10d: the store through which ranks find each other, and collectives among them.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <cstdlib>

#include "guarded.h"

namespace {

using Milliseconds = std::chrono::milliseconds;

template <typename T>
c10::intrusive_ptr<T> borrowed(T *pointer) {
  return c10::intrusive_ptr<T>::reclaim_copy(pointer);
}

// As PyTorch does, with one exception: ranks that are all on one machine need no other interface than its loopback.
std::shared_ptr<gloo::transport::Device> device_for(bool one_machine) {
  const char *interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface && *interface) {
    return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  }
  return one_machine ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                     : c10d::ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

extern "C" {

// A client of the store at host:port, which it serves itself where `serves`; `port` becomes the one that is used.
char *lcsc_store_open(const char *host, uint16_t *port, bool serves, const char *prefix, int64_t timeout_ms, c10d::Store **out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = *port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = Milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port = store->getPort();
    *out = c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store)).release();
  });
}

void lcsc_store_close(c10d::Store *store) { c10::intrusive_ptr<c10d::Store>::reclaim(store); }

char *lcsc_store_set(c10d::Store *store, const char *key, const uint8_t *bytes, size_t length) {
  return guarded([&] { store->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

char *lcsc_store_has(c10d::Store *store, const char *key, bool *has) {
  return guarded([&] { *has = store->check({key}); });
}

// The value of a key that is there, to be freed.
char *lcsc_store_get(c10d::Store *store, const char *key, char **value) {
  return guarded([&] {
    auto bytes = store->get(key);
    *value = strndup(reinterpret_cast<const char *>(bytes.data()), bytes.size());
  });
}

// Collectives on tensors in host memory.
char *lcsc_group_gloo(c10d::Store *store, bool one_machine, int rank, int size, int64_t timeout_ms, c10d::Backend **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(Milliseconds(timeout_ms));
    options->devices.push_back(device_for(one_machine));
    *out = c10::make_intrusive<c10d::ProcessGroupGloo>(borrowed(store), rank, size, options).release();
  });
}

// Gives up what is under way, for which a GPU would else wait.
void lcsc_group_abort(c10d::Backend *group) {
  char *message = guarded([&] { group->abort(); });
  free(message);
}

// Waits for what is under way, and takes leave of the other ranks before the group is gone.
void lcsc_group_close(c10d::Backend *group) {
  auto owned = c10::intrusive_ptr<c10d::Backend>::reclaim(group);
  char *message = guarded([&] { owned->shutdown(); });
  free(message);
}

// The sum over all ranks, in place. On a GPU the current stream waits for it; on the CPU this does.
char *lcsc_all_reduce(c10d::Backend *group, at::Tensor *tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    group->allreduce(tensors)->wait();
  });
}

// Overwrites the tensor with that of rank `root`.
char *lcsc_broadcast(c10d::Backend *group, at::Tensor *tensor, int root, int64_t timeout_ms) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = Milliseconds(timeout_ms);
    group->broadcast(tensors, options)->wait();
  });
}

// The tensors of all ranks one after the other.
char *lcsc_all_gather(c10d::Backend *group, at::Tensor *all, at::Tensor *own) {
  return guarded([&] { group->_allgather_base(*all, *own)->wait(); });
}

}
