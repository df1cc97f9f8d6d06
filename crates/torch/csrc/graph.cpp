// CUDA graphs: what is asked of a GPU is recorded once, and then asked for again by one call.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <memory>
#include <mutex>

#include "guarded.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// The default stream cannot be recorded; one other serves all recordings of a GPU, with its workspaces.
c10::cuda::CUDAStream stream_of(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<int, c10::cuda::CUDAStream> all;
  std::lock_guard<std::mutex> lock(mutex);
  return all.try_emplace(device, c10::cuda::getStreamFromPool(false, device)).first->second;
}

}  // namespace

// Calls `work` twice, which tells whether it went well: to have kernels chosen and loaded, and to record. Its memory is kept.
EXPORT char *lcsc_graph_record(int index, bool (*work)(void *), void *context, at::cuda::CUDAGraph **out) {
  return guarded([&] {
    auto device = static_cast<c10::DeviceIndex>(index);
    c10::cuda::CUDAGuard on_device(device);
    c10::cuda::device_synchronize();
    auto stream = stream_of(device);
    c10::cuda::CUDAStreamGuard on_stream(stream);
    TORCH_CHECK(work(context), "what is recorded failed");
    stream.synchronize();
    // While something is recorded, freed memory is not given back.
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    auto pool = at::cuda::graph_pool_handle();
    // Other threads may go on: they write checkpoints.
    graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    bool is_done = work(context);
    try {
      graph->capture_end();
    } catch (...) {
      // libtorch has left the pool open, and would free what is not whole.
      graph.release();
      try {
        c10::cuda::CUDACachingAllocator::endAllocateToPool(device, pool);
      } catch (const std::exception &) {
      }
      throw;
    }
    TORCH_CHECK(is_done, "what is recorded failed");
    *out = graph.release();
  });
}

// On the stream of this thread.
EXPORT char *lcsc_graph_replay(at::cuda::CUDAGraph *graph) {
  return guarded([&] { graph->replay(); });
}

EXPORT void lcsc_graph_free(at::cuda::CUDAGraph *graph) { delete graph; }
