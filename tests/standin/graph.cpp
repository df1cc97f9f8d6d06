// CUDA graphs: what is recorded is a list of what was done.
#include "standin.h"

#include <cstring>
#include <memory>

namespace standin {

thread_local std::vector<std::function<void()>> *recording = nullptr;

void record(std::function<void()> work) {
  if (recording) recording->push_back(std::move(work));
}

bool is_recording() { return recording; }

}  // namespace standin

struct Graph {
  std::vector<std::function<void()>> work;
};

extern "C" {

char *lcsc_graph_record(int, bool (*work)(void *), void *context, Graph **out) {
  auto graph = std::make_unique<Graph>();
  if (!work(context)) return strdup("what is recorded failed");
  standin::recording = &graph->work;
  bool is_done = work(context);
  standin::recording = nullptr;
  if (!is_done) return strdup("what is recorded failed");
  *out = graph.release();
  return nullptr;
}

char *lcsc_graph_replay(Graph *graph) {
  try {
    for (auto &work : graph->work) work();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}

void lcsc_graph_free(Graph *graph) { delete graph; }
}
