// How errors leave C++.
#pragma once

#include <cstring>
#include <exception>

// Null, or the message of the exception that `work` ended with, which the caller frees.
template <typename Work>
char *guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}
