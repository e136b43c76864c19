# SPDX-License-Identifier: Apache-2.0
# cmake -DNM=... -DOBJECTS="a.o;b.o" -P no_weak_symbols.cmake
#
# Fails if a kernel object defines a weak or unique symbol. The linker keeps one definition of such
# a symbol, whichever tier's it finds first: on a machine without that tier's instructions the
# process would then die of an illegal one.
if(NOT OBJECTS)
  message(FATAL_ERROR "no objects to check")
endif()
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --defined-only --demangle ${object}
                  OUTPUT_VARIABLE symbols RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NM} cannot read ${object}")
  endif()
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " shared)
    message(SEND_ERROR "${object} shares symbols with other tiers:\n  ${shared}")
  endif()
endforeach()
