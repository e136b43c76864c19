// SPDX-License-Identifier: Apache-2.0
// What the suite covered: cases and the worst error by feature and target, printed at the end.
#pragma once

#include <map>
#include <string>

#include "target.h"

namespace broadhead::test {

/// Counts a case of `feature`; `ratio` is its largest error in units of its tolerance.
void record(const std::string& feature, const Target& target, double ratio);

/// Prints the table, and why tests were skipped.
void print_summary();

/// Fails each test that leaves a handle or an Arrow structure behind, and notes why tests are
/// skipped.
class Listener : public testing::EmptyTestEventListener {
 public:
  void OnTestPartResult(const testing::TestPartResult& part) override;
  void OnTestEnd(const testing::TestInfo& test) override;
};

}  // namespace broadhead::test
