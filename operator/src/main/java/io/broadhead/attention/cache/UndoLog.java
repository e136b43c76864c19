// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.ArrayList;
import java.util.List;

/** What takes back the changes that were made for rows which are not computed after all. */
final class UndoLog {
  private final List<Runnable> actions = new ArrayList<>();

  void add(Runnable action) {
    actions.add(action);
  }

  /** For {@link #rollBackTo}. */
  int mark() {
    return actions.size();
  }

  /** Takes back what was done since {@code mark}, the last first. */
  void rollBackTo(int mark) {
    while (actions.size() > mark) {
      actions.remove(actions.size() - 1).run();
    }
  }

  /** What was done stays. */
  void clear() {
    actions.clear();
  }
}
