// SPDX-License-Identifier: Apache-2.0
// broadhead_conformance [--backend=NAME] [--device=INDEX] [--every=N] [--seeds=N] [GoogleTest
// flags]
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "flags.h"
#include "summary.h"
#include "target.h"

int main(int argc, char** argv) {
  using broadhead::test::take_flag;
  broadhead::test::Options& options = broadhead::test::options();
  take_flag(argc, argv, "backend", options.backend);
  if (std::string device; take_flag(argc, argv, "device", device)) {
    options.device = std::stoi(device);
  }
  if (std::string every; take_flag(argc, argv, "every", every)) options.every = std::stoi(every);
  if (std::string seeds; take_flag(argc, argv, "seeds", seeds)) options.seeds = std::stoi(seeds);
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1) {
    std::fprintf(
        stderr,
        "unknown argument %s; known: --backend=NAME --device=INDEX --every=N --seeds=N and "
        "--help's\n",
        argv[1]);
    return EXIT_FAILURE;
  }
  testing::UnitTest::GetInstance()->listeners().Append(new broadhead::test::Listener);
  const int result = RUN_ALL_TESTS();
  broadhead::test::print_summary();
  return result;
}
