// SPDX-License-Identifier: Apache-2.0
package io.broadhead.nativelib.presets;

import org.bytedeco.javacpp.annotation.Platform;
import org.bytedeco.javacpp.annotation.Properties;
import org.bytedeco.javacpp.tools.Info;
import org.bytedeco.javacpp.tools.InfoMap;
import org.bytedeco.javacpp.tools.InfoMapper;

/**
 * Tells JavaCPP how to turn {@code broadhead/broadhead.h} into {@code
 * io.broadhead.nativelib.global.broadhead}. Used at build time and as the anchor of the generated
 * classes' loader properties.
 *
 * <p>The C Data structures stay plain addresses: {@code org.apache.arrow.c.ArrowArray} already is
 * their Java side. That works only while {@code arrow_c_data.h} is not parsed itself.
 */
@Properties(
    value =
        @Platform(
            value = {"linux-x86_64", "linux-arm64"},
            compiler = "cpp17",
            cinclude = "broadhead/broadhead.h",
            link = "broadhead_static"),
    target = "io.broadhead.nativelib",
    global = "io.broadhead.nativelib.global.broadhead")
public class broadhead implements InfoMapper {
  @Override
  public void map(InfoMap infoMap) {
    infoMap
        .put(new Info("BH_API").cppTypes().annotations())
        .put(new Info("ArrowArray", "ArrowSchema").cast().valueTypes("long").pointerTypes("long"));
  }
}
