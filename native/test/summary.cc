// SPDX-License-Identifier: Apache-2.0
#include "summary.h"

#include <algorithm>
#include <cstdio>

namespace broadhead::test {
namespace {

struct Line {
  int cases = 0;
  double worst = 0;
};

std::map<std::string, std::map<std::string, Line>>& lines() {
  static std::map<std::string, std::map<std::string, Line>> by_feature;
  return by_feature;
}

std::map<std::string, int>& skips() {
  static std::map<std::string, int> by_reason;
  return by_reason;
}

}  // namespace

void record(const std::string& feature, const Target& target, double ratio) {
  for (const std::string& row : {feature, std::string("(all)")}) {
    Line& line = lines()[row][target.label()];
    ++line.cases;
    line.worst = std::max(line.worst, ratio);
  }
}

void print_summary() {
  std::printf("\n%-22s", "cases, worst/tolerance");
  for (const Target& target : targets()) std::printf("%20s", target.label().c_str());
  for (const auto& [feature, by_target] : lines()) {
    std::printf("\n%-22s", feature.c_str());
    for (const Target& target : targets()) {
      const auto line = by_target.find(target.label());
      if (line == by_target.end()) {
        std::printf("%20s", "-");
      } else {
        std::printf("%12d%8.2f", line->second.cases, line->second.worst);
      }
    }
  }
  std::printf("\n");
  for (const auto& [reason, tests] : skips()) {
    std::printf("skipped %d tests: %s\n", tests, reason.c_str());
  }
}

void Listener::OnTestPartResult(const testing::TestPartResult& part) {
  if (!part.skipped()) return;
  const std::string message = part.message();
  ++skips()[message.substr(0, message.find('\n'))];
}

void Listener::OnTestEnd(const testing::TestInfo&) {
  EXPECT_EQ(bh_live_handles(), 0) << "handles left by this test";
  EXPECT_EQ(live_c_data(), 0) << "Arrow structures that were not released";
}

}  // namespace broadhead::test
