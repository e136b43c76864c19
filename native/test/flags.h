// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace broadhead::test {

/// Takes `--name=value` out of the arguments.
inline bool take_flag(int& argc, char** argv, const std::string& name, std::string& value) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]).rfind(prefix, 0) != 0) continue;
    value = argv[i] + prefix.size();
    for (; i < argc; ++i) argv[i] = argv[i + 1];
    --argc;
    return true;
  }
  return false;
}

}  // namespace broadhead::test
