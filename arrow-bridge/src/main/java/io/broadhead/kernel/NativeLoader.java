// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.JvmFlags;
import io.broadhead.nativelib.global.broadhead;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ForkJoinPool;

/** Loads the native library once per class loader, or says in one sentence why it cannot. */
public final class NativeLoader {
  private static final String MAX_PHYSICAL_BYTES = "org.bytedeco.javacpp.maxPhysicalBytes";

  private static volatile boolean loaded;

  private NativeLoader() {}

  /**
   * Loads the library if it is not yet loaded.
   *
   * @throws IllegalStateException naming the JVM flag to add
   * @throws KernelException {@link ErrorCode#ABI_MISMATCH} if library and binding do not fit
   */
  public static void load() {
    if (!loaded) {
      loadOnce();
    }
  }

  private static synchronized void loadOnce() {
    if (loaded) {
      return;
    }
    JvmFlags.requireJavaNioOpen();
    // JavaCPP would otherwise count the whole process, KV cache included, against four times the
    // heap and throw OutOfMemoryError. It reads the property when its first class is initialised.
    if (System.getProperty(MAX_PHYSICAL_BYTES) == null) {
      System.setProperty(MAX_PHYSICAL_BYTES, "0");
    }
    int version;
    // JavaCPP's first class starts a thread that never ends and keeps what it inherits from its
    // creator, which in a Flink task would be the class loader of the job.
    ForkJoinPool creator = new ForkJoinPool(1);
    try {
      version = CompletableFuture.supplyAsync(() -> broadhead.bh_abi_version(), creator).join();
    } catch (CompletionException e) {
      if (!(e.getCause() instanceof LinkageError)) {
        throw e;
      }
      throw new IllegalStateException(
          "the native library of Broadhead cannot be loaded on "
              + System.getProperty("os.name")
              + " "
              + System.getProperty("os.arch")
              + ": "
              + e.getCause().getMessage(),
          e.getCause());
    } finally {
      creator.shutdown();
    }
    checkVersion(broadhead.BH_ABI_VERSION, version);
    loaded = true;
  }

  static void checkVersion(int expected, int got) {
    if (expected != got) {
      throw new KernelException(
          ErrorCode.ABI_MISMATCH,
          -1,
          "native library: expected ABI version "
              + expected
              + ", got "
              + got
              + "; two versions of Broadhead are on the class path or in the library folder");
    }
  }

  /** Whether {@link #load()} has succeeded in this class loader. */
  public static boolean isLoaded() {
    return loaded;
  }
}
