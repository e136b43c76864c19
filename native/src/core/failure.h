// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>

#include "broadhead/broadhead.h"

namespace broadhead {

/// What goes wrong inside the library; the C ABI turns it into a status and a bh_error.
class Failure : public std::exception {
 public:
  [[gnu::format(printf, 4, 5)]] Failure(bh_status code, int64_t row, const char* format, ...)
      : code_(code), row_(row) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message_, sizeof message_, format, arguments);
    va_end(arguments);
  }

  const char* what() const noexcept override { return message_; }
  bh_status code() const { return code_; }
  int64_t row() const { return row_; }

 private:
  bh_status code_;
  int64_t row_;
  char message_[sizeof(bh_error::message)];
};

constexpr int64_t kNoRow = -1;

}  // namespace broadhead
