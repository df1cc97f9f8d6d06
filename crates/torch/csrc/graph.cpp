// CUDA graphs: what is asked of a GPU is recorded once, and then asked for again by one call.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include "guarded.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Calls `work` twice, which tells whether it went well: to have kernels chosen and loaded, and to record. Its memory is kept.
EXPORT char *lcsc_graph_record(int device, bool (*work)(void *), void *context, at::cuda::CUDAGraph **out) {
  return guarded([&] {
    c10::cuda::CUDAGuard on_device(static_cast<c10::DeviceIndex>(device));
    c10::cuda::device_synchronize();
    // The default stream cannot be recorded.
    auto stream = c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(device));
    c10::cuda::CUDAStreamGuard on_stream(stream);
    TORCH_CHECK(work(context), "what is recorded failed");
    stream.synchronize();
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    // Other threads may go on: they write checkpoints.
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    bool is_done = work(context);
    graph->capture_end();
    TORCH_CHECK(is_done, "what is recorded failed");
    *out = graph.release();
  });
}

// On the stream of this thread.
EXPORT char *lcsc_graph_replay(at::cuda::CUDAGraph *graph) {
  return guarded([&] { graph->replay(); });
}

EXPORT void lcsc_graph_free(at::cuda::CUDAGraph *graph) { delete graph; }
