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
    const int length = std::vsnprintf(message_, sizeof message_, format, arguments);
    va_end(arguments);
    if (length >= int{sizeof message_}) drop_cut_character();
  }

  const char* what() const noexcept override { return message_; }
  bh_status code() const { return code_; }
  int64_t row() const { return row_; }

 private:
  /// Names are UTF-8 of any length.
  void drop_cut_character() {
    char* end = message_ + sizeof message_ - 1;
    while (end > message_ && (end[-1] & 0xc0) == 0x80) --end;
    if (end > message_ && (end[-1] & 0xc0) == 0xc0) --end;
    *end = '\0';
  }

  bh_status code_;
  int64_t row_;
  char message_[sizeof(bh_error::message)];
};

constexpr int64_t kNoRow = -1;

}  // namespace broadhead
