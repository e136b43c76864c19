// SPDX-License-Identifier: Apache-2.0
package io.broadhead.testing;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.NativeLoader;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.BeforeEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.extension.ParameterContext;
import org.junit.jupiter.api.extension.ParameterResolver;

/**
 * Gives each test a root allocator, as a parameter of type {@link BufferAllocator}, and fails the
 * test if it leaves memory, an unclosed batch that the garbage collector found, or a native handle.
 *
 * <p>Use: {@code @ExtendWith(NoLeaks.class)}.
 */
public final class NoLeaks implements BeforeEachCallback, AfterEachCallback, ParameterResolver {
  private static final ExtensionContext.Namespace NAMESPACE =
      ExtensionContext.Namespace.create(NoLeaks.class);

  @Override
  public void beforeEach(ExtensionContext context) {
    ExtensionContext.Store store = context.getStore(NAMESPACE);
    store.put(BufferAllocator.class, Allocators.root());
    store.put("leaked", ArrowBatch.leakedCount());
    store.put("handles", liveHandles());
  }

  @Override
  public void afterEach(ExtensionContext context) {
    ExtensionContext.Store store = context.getStore(NAMESPACE);
    store.remove(BufferAllocator.class, BufferAllocator.class).close();
    expect(
        "batches left to the cleaner", store.get("leaked", Long.class), ArrowBatch.leakedCount());
    expect("live native handles", store.get("handles", Long.class), liveHandles());
  }

  private static void expect(String what, long before, long after) {
    if (before != after) {
      throw new AssertionError(what + ": expected " + before + ", got " + after);
    }
  }

  private static long liveHandles() {
    return NativeLoader.isLoaded() ? KernelEngine.liveHandles() : 0;
  }

  @Override
  public boolean supportsParameter(ParameterContext parameter, ExtensionContext context) {
    return parameter.getParameter().getType() == BufferAllocator.class;
  }

  @Override
  public Object resolveParameter(ParameterContext parameter, ExtensionContext context) {
    return context.getStore(NAMESPACE).get(BufferAllocator.class, BufferAllocator.class);
  }
}
