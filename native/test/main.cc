// SPDX-License-Identifier: Apache-2.0
// broadhead_conformance [--backend=NAME] [--every=N] [GoogleTest flags]
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "summary.h"
#include "target.h"

namespace {

/// Takes `--name=value` out of the arguments.
bool take_flag(int& argc, char** argv, const std::string& name, std::string& value) {
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

}  // namespace

int main(int argc, char** argv) {
  broadhead::test::Options& options = broadhead::test::options();
  take_flag(argc, argv, "backend", options.backend);
  if (std::string every; take_flag(argc, argv, "every", every)) options.every = std::stoi(every);
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1) {
    std::fprintf(stderr, "unknown argument %s; known: --backend=NAME --every=N and --help's\n",
                 argv[1]);
    return EXIT_FAILURE;
  }
  testing::UnitTest::GetInstance()->listeners().Append(new broadhead::test::Listener);
  const int result = RUN_ALL_TESTS();
  broadhead::test::print_summary();
  return result;
}
