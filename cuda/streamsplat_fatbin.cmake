# The kernels of the runtime as one fatbin for all architectures, beside their sources (see CMakeLists.txt).
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
    set(number ${CMAKE_MATCH_1})
    if(NOT CMAKE_MATCH_2 STREQUAL "-virtual")
      list(APPEND generate "-gencode=arch=compute_${number},code=sm_${number}")
    endif()
    if(NOT CMAKE_MATCH_2 STREQUAL "-real")
      list(APPEND generate "-gencode=arch=compute_${number},code=compute_${number}")
    endif()
  else()  # native, all, all-major
    list(APPEND generate "-arch=${architecture}")
  endif()
endforeach()

set(fatbin ${CMAKE_CURRENT_BINARY_DIR}/streamsplat.fatbin)
list(TRANSFORM streamsplat_kernel_sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/ OUTPUT_VARIABLE sources)
# Contraction off, as for the C++ version: see raster_cuda.h.
add_custom_command(OUTPUT ${fatbin}
  COMMAND ${CMAKE_CUDA_COMPILER} -std=c++17 -O3 -fmad=false -Werror all-warnings ${generate} -fatbin
    ${CMAKE_CURRENT_SOURCE_DIR}/streamsplat.cu -o ${fatbin}
  DEPENDS ${sources}
  COMMENT "Compiling the kernels of the runtime"
  VERBATIM)
add_custom_target(streamsplat_fatbin ALL DEPENDS ${fatbin})
install(FILES ${fatbin} DESTINATION streamsplat_edge/kernels)
