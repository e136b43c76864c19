// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/**
 * A native object with one owner, who closes it.
 *
 * <p>Closing is idempotent and never pulls memory from under a user: a handle keeps those it was
 * made from, and a call in progress keeps its own, so the native object goes with the last of them.
 * One thread at a time may call into a handle; a second one is told so.
 */
abstract class NativeHandle implements AutoCloseable {
  private final String what;
  private final NativeHandle[] parents;
  private final AtomicInteger references = new AtomicInteger(1);
  private final AtomicBoolean closed = new AtomicBoolean();
  private final AtomicReference<Thread> user = new AtomicReference<>();

  /** Takes a reference on each parent that is not null. */
  NativeHandle(String what, NativeHandle... parents) {
    this.what = what;
    this.parents = parents;
    for (int i = 0; i < parents.length; i++) {
      try {
        if (parents[i] != null) {
          parents[i].acquire();
        }
      } catch (IllegalStateException e) {
        releaseParents(i);
        throw e;
      }
    }
  }

  /** Frees the native object; called once. */
  abstract void destroy();

  /** Starts a call of this thread into the handle. */
  final void enter() {
    acquire();
    Thread current = Thread.currentThread();
    if (!user.compareAndSet(null, current)) {
      Thread other = user.get();
      drop();
      throw new IllegalStateException(
          what
              + ": in use by thread "
              + (other == null ? "?" : other.getName())
              + ", so thread "
              + current.getName()
              + " must wait for it");
    }
  }

  /** Ends what {@link #enter()} started. */
  final void exit() {
    user.set(null);
    drop();
  }

  /** Runs {@code call} beside other users of the handle, unless it was closed. */
  final void tryUse(Runnable call) {
    if (tryAcquire()) {
      try {
        call.run();
      } finally {
        drop();
      }
    }
  }

  /** Keeps the native object until {@link #drop()}. */
  final void acquire() {
    if (!tryAcquire()) {
      throw new IllegalStateException(what + " was closed");
    }
  }

  private boolean tryAcquire() {
    return !closed.get() && references.getAndUpdate(n -> n > 0 ? n + 1 : n) > 0;
  }

  final void drop() {
    if (references.decrementAndGet() == 0) {
      try {
        destroy();
      } finally {
        releaseParents(parents.length);
      }
    }
  }

  private void releaseParents(int count) {
    for (int i = 0; i < count; i++) {
      if (parents[i] != null) {
        parents[i].drop();
      }
    }
  }

  /** Closes those that are not null, as far as a constructor has come. */
  static void closeAll(AutoCloseable... resources) {
    for (AutoCloseable resource : resources) {
      if (resource != null) {
        try {
          resource.close();
        } catch (Exception e) {
          throw new IllegalStateException(e);
        }
      }
    }
  }

  /** Called by a constructor that failed after this one: nothing native exists yet. */
  final void abandon() {
    closed.set(true);
    references.set(0);
    releaseParents(parents.length);
  }

  public final boolean isClosed() {
    return closed.get();
  }

  @Override
  public final void close() {
    if (closed.compareAndSet(false, true)) {
      drop();
    }
  }

  @Override
  public String toString() {
    return what;
  }
}
