// SPDX-License-Identifier: Apache-2.0
#include "gpu/library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "core/failure.h"

namespace broadhead::gpu {
namespace {

std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || !info.dli_fname) return ".";
  char* path = realpath(info.dli_fname, nullptr);
  std::string folder = path ? path : info.dli_fname;
  std::free(path);
  const size_t slash = folder.rfind('/');
  return slash == std::string::npos ? "." : folder.substr(0, slash);
}

Library open(const std::string& name) {
  const char* configured = std::getenv("BROADHEAD_LIBRARY_PATH");
  const std::string folder = configured ? configured : own_folder();
  const std::string file = "libbroadhead_" + name + ".so";
  const std::string path = folder + "/" + file;
  Library library;
  if (access(path.c_str(), R_OK) != 0) {
    library.reason = file + " is not in " + folder +
                     (configured ? "" : "; BROADHEAD_LIBRARY_PATH may name its folder");
    return library;
  }
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    library.reason = dlerror();
    return library;
  }
  const auto get = reinterpret_cast<GetDeviceApi>(dlsym(handle, kGetDeviceApi));
  const DeviceApi* api = get ? get() : nullptr;
  if (!api || api->version != kDeviceApiVersion || api->struct_size != sizeof(DeviceApi)) {
    const auto described = [](uint32_t version, size_t size) {
      return std::to_string(version) + " of " + std::to_string(size) + " bytes";
    };
    library.reason = path + ": expected device API version " +
                     described(kDeviceApiVersion, sizeof(DeviceApi)) + ", got " +
                     (api ? described(api->version, api->struct_size) : "none");
    return library;
  }
  library.api = api;
  return library;
}

}  // namespace

const Library& library(const char* name) {
  static std::mutex mutex;
  static std::map<std::string, Library> libraries;
  const std::lock_guard lock(mutex);
  const auto found = libraries.find(name);
  if (found != libraries.end()) return found->second;
  return libraries.emplace(name, open(name)).first->second;
}

void check(const DeviceApi& api, int32_t status, const char* what) {
  switch (status) {
    case kOk:
      return;
    case kOutOfMemory:
      throw Failure(BH_OUT_OF_MEMORY, kNoRow, "%s: %s", what, api.message());
    case kDeviceLost:
      throw Failure(BH_DEVICE_LOST, kNoRow, "%s: %s", what, api.message());
    default:
      throw Failure(BH_DEVICE_ERROR, kNoRow, "%s: %s", what, api.message());
  }
}

}  // namespace broadhead::gpu
