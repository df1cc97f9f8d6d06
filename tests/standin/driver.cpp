// CUDA's driver and NVRTC: a kernel's text is compiled by the C++ compiler, and the threads of a block run by turns, each until it
// waits for the others.
#include "standin.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

// What kernels see of their place.
struct Index {
  unsigned x, y, z;
};
extern "C" Index threadIdx, blockIdx, gridDim;
Index threadIdx, blockIdx, gridDim;

namespace standin {
namespace {

// What stands before a kernel's text. Its only argument is a struct `Norm`.
const char *const kWords = R"(
#include <math.h>

#include <cstring>
struct Index { unsigned x, y, z; };
extern "C" Index threadIdx, blockIdx, gridDim;
extern "C" void standin_sync();
#define __device__
#define __shared__ static
#define __syncthreads standin_sync
inline float __uint_as_float(unsigned bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline unsigned __float_as_uint(float v) { unsigned bits; std::memcpy(&bits, &v, 4); return bits; }
#if VALUE == 2
inline float load(unsigned short bits) { _Float16 v; std::memcpy(&v, &bits, 2); return v; }
inline unsigned short store(float v) { _Float16 h = v; unsigned short bits; std::memcpy(&bits, &h, 2); return bits; }
#endif
#define KERNEL(name)                                                                             \
  void name##_body(Norm);                                                                        \
  extern "C" void name(const void *given) { name##_body(*static_cast<const Norm *>(given)); }    \
  extern "C" { unsigned long name##_size = sizeof(Norm); }                                       \
  void name##_body
)";

struct Kernel {
  void (*run)(const void *);
  size_t size;
};

constexpr size_t kThreads = 1024, kStack = size_t(64) << 10;
// The block that runs: its threads, and which of them ended.
struct Block {
  ucontext_t begins[kThreads];
  // Where the host and each thread go on: unlike contexts these cost no call of the system.
  jmp_buf host, threads[kThreads];
  bool has_begun[kThreads], ended[kThreads];
  Kernel *kernel;
  const void *argument;
} block;

void begin() {
  block.kernel->run(block.argument);
  block.ended[threadIdx.x] = true;
  _longjmp(block.host, 1);
}

// Lets a thread run until it waits or ends.
__attribute__((noinline)) void go_on(unsigned thread) {
  threadIdx = {thread, 0, 0};
  if (_setjmp(block.host)) return;
  if (block.has_begun[thread]) _longjmp(block.threads[thread], 1);
  block.has_begun[thread] = true;
  setcontext(&block.begins[thread]);
}

// Runs a block to its end. All of its threads have to wait equally often.
void run_block(unsigned threads) {
  static char *stacks = static_cast<char *>(malloc(kThreads * kStack));
  for (unsigned i = 0; i < threads; i++) {
    auto &context = block.begins[i];
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + i * kStack;
    context.uc_stack.ss_size = kStack;
    makecontext(&context, begin, 0);
    block.has_begun[i] = block.ended[i] = false;
  }
  for (unsigned ended = 0; ended < threads;) {
    ended = 0;
    for (unsigned i = 0; i < threads; i++) {
      go_on(i);
      ended += block.ended[i];
    }
    TORCH_CHECK(!ended || ended == threads, "some threads of a block ended while others wait for them");
  }
}

struct Program {
  std::string text, log, path;
};

}  // namespace
}  // namespace standin

using standin::Kernel;
using standin::Program;

extern "C" {

void standin_sync() {
  if (!_setjmp(standin::block.threads[threadIdx.x])) _longjmp(standin::block.host, 1);
}

int nvrtcCreateProgram(void **out, const char *text, const char *, int, const char **, const char **) {
  *out = new Program{text, "", ""};
  return 0;
}
int nvrtcCompileProgram(void *given, int count, const char **options) {
  auto &program = *static_cast<Program *>(given);
  char folder[] = "/tmp/standin-XXXXXX";
  if (!mkdtemp(folder)) return 1;
  program.path = std::string(folder) + "/kernel.so";
  std::string source = std::string(folder) + "/kernel.cpp", command = "c++ -O2 -fPIC -shared -w -std=c++17";
  for (int i = 0; i < count; i++) {
    const std::string option = options[i], macro = "--define-macro=";
    if (option.compare(0, macro.size(), macro) == 0) command += " -D" + option.substr(macro.size());
  }
  FILE *file = fopen(source.c_str(), "w");
  fprintf(file, "%s#line 1 \"norm.cu\"\n%s", standin::kWords, program.text.c_str());
  fclose(file);
  int status = system((command + " -o " + program.path + " " + source).c_str());
  unlink(source.c_str());
  program.log = "see above";
  return status != 0;
}
int nvrtcGetProgramLogSize(void *program, size_t *size) { return *size = static_cast<Program *>(program)->log.size() + 1, 0; }
int nvrtcGetProgramLog(void *program, char *log) { return strcpy(log, static_cast<Program *>(program)->log.c_str()), 0; }
int nvrtcGetCUBINSize(void *program, size_t *size) { return *size = static_cast<Program *>(program)->path.size() + 1, 0; }
int nvrtcGetCUBIN(void *program, char *path) { return strcpy(path, static_cast<Program *>(program)->path.c_str()), 0; }
int nvrtcDestroyProgram(void **program) { return delete static_cast<Program *>(*program), 0; }

int cuGetErrorString(int, const char **text) { return *text = "a failure of the stand-in", 0; }
int cuDeviceGet(int *device, int index) { return *device = index, index >= standin::kDevices; }
int cuDeviceGetAttribute(int *value, int, int) { return *value = 9, 0; }
// A context is the number of its device, from one on.
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = reinterpret_cast<void *>(device + 1l), 0; }
static thread_local long context = 0;
int cuCtxPushCurrent_v2(void *given) { return context = reinterpret_cast<long>(given), 0; }
int cuCtxPopCurrent_v2(void **out) { return *out = reinterpret_cast<void *>(context), context = 0, 0; }
int cuModuleLoadData(void **module, const void *path) {
  std::string library = static_cast<const char *>(path);
  *module = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "[standin] %s\n", dlerror());
  unlink(library.c_str());
  rmdir(library.substr(0, library.rfind('/')).c_str());
  return !*module;
}
int cuModuleGetFunction(void **out, void *module, const char *name) {
  auto *run = reinterpret_cast<void (*)(const void *)>(dlsym(module, name));
  auto *size = static_cast<unsigned long *>(dlsym(module, (std::string(name) + "_size").c_str()));
  if (!run || !size) return 1;
  *out = new Kernel{run, *size};
  return 0;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned, void *, void **arguments,
                   void **) {
  if (!context || threads > standin::kThreads) return 1;
  standin::note_work(context - 1);
  auto *kernel = static_cast<Kernel *>(function);
  // Addresses of device memory become those under which a kernel finds it; nothing else looks like one.
  std::vector<void *> words(kernel->size / sizeof(void *));
  memcpy(words.data(), arguments[0], kernel->size);
  for (auto &word : words) word = standin::host_address(word);
  auto launch = [=] {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    standin::block.kernel = kernel;
    standin::block.argument = words.data();
    gridDim = {x, y, 1};
    for (unsigned j = 0; j < y; j++) {
      for (unsigned i = 0; i < x; i++) {
        blockIdx = {i, j, 0};
        standin::run_block(threads);
      }
    }
  };
  launch();
  standin::record(launch);
  return 0;
}
}
