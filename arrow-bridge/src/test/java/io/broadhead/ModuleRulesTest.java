// SPDX-License-Identifier: Apache-2.0
package io.broadhead;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;

import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.junit.AnalyzeClasses;
import com.tngtech.archunit.junit.ArchTest;
import com.tngtech.archunit.lang.ArchRule;

@AnalyzeClasses(
    packages = {"io.broadhead.arrow", "io.broadhead.kernel"},
    importOptions = ImportOption.DoNotIncludeTests.class)
class ModuleRulesTest {
  @ArchTest
  static final ArchRule arrowKnowsNoNativeCode =
      noClasses()
          .that()
          .resideInAPackage("io.broadhead.arrow..")
          .should()
          .dependOnClassesThat()
          .resideInAnyPackage(
              "io.broadhead.kernel..", "io.broadhead.nativelib..", "org.bytedeco..");

  @ArchTest
  static final ArchRule nothingPublicIsAPointer =
      noClasses().that().arePublic().should().beAssignableTo("org.bytedeco.javacpp.Pointer");
}
