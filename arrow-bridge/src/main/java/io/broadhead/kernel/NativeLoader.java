// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.JvmFlags;
import io.broadhead.nativelib.global.broadhead;

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
    try {
      version = broadhead.bh_abi_version();
    } catch (LinkageError e) {
      throw new IllegalStateException(
          "the native library of Broadhead cannot be loaded on "
              + System.getProperty("os.name")
              + " "
              + System.getProperty("os.arch")
              + ": "
              + e.getMessage(),
          e);
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
