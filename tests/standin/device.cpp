// Memory, waiting, and what libtorch asks of a device beside its kernels.
#include "standin.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;

namespace standin {
namespace {

constexpr size_t kSize = size_t(64) << 30;
constexpr size_t kUnit = 512;

// One file seen twice: without rights where tensors say that they are, and readable for kernels.
struct Memory {
  char *device = nullptr, *host = nullptr;
  std::mutex mutex;
  size_t top = kUnit;
  // Blocks that were freed, by length; lengths of all blocks, by place.
  std::map<size_t, std::vector<size_t>> freed;
  std::map<size_t, size_t> lengths;

  Memory() {
    int file = memfd_create("standin", 0);
    if (file < 0 || ftruncate(file, kSize)) {
      perror("standin: memory");
      abort();
    }
    device = map(file, PROT_NONE);
    host = map(file, PROT_READ | PROT_WRITE);
  }

  static char *map(int file, int rights) {
    void *place = mmap(nullptr, kSize, rights, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (place == MAP_FAILED) {
      perror("standin: memory");
      abort();
    }
    return static_cast<char *>(place);
  }

  void *take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    bytes = (bytes + kUnit - 1) / kUnit * kUnit;
    auto &same = freed[bytes];
    size_t place = top;
    if (same.empty()) {
      top += bytes;
      TORCH_CHECK(top <= kSize, "CUDA out of memory (stand-in)");
    } else {
      place = same.back();
      same.pop_back();
    }
    lengths[place] = bytes;
    // What was not written is no number.
    memset(host + place, 0xff, std::min(bytes, size_t(1) << 22));
    return device + place;
  }

  void give_back(void *pointer) {
    std::lock_guard<std::mutex> lock(mutex);
    size_t place = static_cast<char *>(pointer) - device;
    freed[lengths[place]].push_back(place);
  }
};

// Never destroyed: tensors in static storage outlive it otherwise.
Memory &memory() {
  static Memory *memory = new Memory;
  return *memory;
}

void free_block(void *pointer) {
  if (pointer) memory().give_back(pointer);
}

struct Allocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void *pointer = bytes ? memory().take(bytes) : nullptr;
    return {pointer, pointer, &free_block, Device(DeviceType::CUDA, current_device())};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void *to, const void *from, size_t bytes) const override {
    memcpy(host_address(to), host_address(from), bytes);
  }
};

std::atomic<int64_t> waits{0};
std::array<std::atomic<int64_t>, kDevices> works{};
std::mutex queue_mutex;
std::deque<std::function<void()>> queue;

// What tests read.
struct Report {
  ~Report() {
    fprintf(stderr, "[standin] waits %lld, work on devices", (long long)waits.load());
    for (auto &work : works) fprintf(stderr, " %lld", (long long)work.load());
    fprintf(stderr, "\n");
  }
} report;

}  // namespace

int &current_device() {
  thread_local int current = 0;
  return current;
}

at::Allocator *allocator() {
  static Allocator allocator;
  return &allocator;
}

void *host_address(const void *address) {
  auto *place = static_cast<const char *>(address);
  auto &m = memory();
  bool is_device = place >= m.device && place < m.device + kSize;
  return is_device ? m.host + (place - m.device) : const_cast<char *>(place);
}

void later(std::function<void()> work) {
  std::lock_guard<std::mutex> lock(queue_mutex);
  queue.push_back(std::move(work));
}

void wait() {
  TORCH_CHECK(!is_recording(), "a graph is recorded: nobody may wait for the device");
  waits++;
  std::deque<std::function<void()>> due;
  {
    std::lock_guard<std::mutex> lock(queue_mutex);
    due.swap(queue);
  }
  for (auto &work : due) work();
}

void note_work(int index) { works.at(index)++; }

namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override {
    Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(DeviceType::CUDA, current_device()); }
  void setDevice(Device device) const override {
    if (device.index() >= 0) current_device() = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override { setDevice(device); }
  c10::Stream getStream(Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device.index() < 0 ? getDevice() : device);
  }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  void *getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void **event, const c10::Stream &, const DeviceIndex, const c10::EventFlag) const override {
    *event = this_event;
  }
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override { wait(); }
  void synchronizeEvent(void *) const override { wait(); }
  void synchronizeDevice(const DeviceIndex) const override { wait(); }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }

 private:
  void *const this_event = const_cast<char *>("event");
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Generator : c10::GeneratorImpl {
  uint64_t seed_ = 0;
  explicit Generator(int index)
      : GeneratorImpl(Device(DeviceType::CUDA, index), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { seed_ = seed; }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override { return seed_; }
  void set_state(const c10::TensorImpl &) override {}
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return {}; }
  GeneratorImpl *clone_impl() const override { return new Generator(device().index()); }
};

}  // namespace
}  // namespace standin

namespace at {

// Its name is what libtorch looks for.
struct StandinHooks : CUDAHooksInterface {
  explicit StandinHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const Generator &getDefaultGenerator(DeviceIndex index = -1) const override {
    static Generator all[standin::kDevices] = {make_generator<standin::Generator>(0), make_generator<standin::Generator>(1)};
    return all[index < 0 ? standin::current_device() : index];
  }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return standin::kDevices; }
  int getNumGPUs() const override { return standin::kDevices; }
  Allocator *getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Allocator *getCUDADeviceAllocator() const override { return standin::allocator(); }
  void deviceSynchronize(DeviceIndex) const override { standin::wait(); }
  DeviceIndex current_device() const override { return standin::current_device(); }
  DeviceIndex getCurrentDevice() const override { return standin::current_device(); }
  void setCurrentDevice(DeviceIndex index) const override { standin::current_device() = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    auto before = standin::current_device();
    standin::current_device() = index;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
  Device getDeviceFromPtr(void *) const override { return Device(DeviceType::CUDA, 0); }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", StandinHooks)

}  // namespace at
