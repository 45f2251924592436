# Finds nvcc and chooses architectures for everything in CUDA. Asking for it (STREAMSPLAT_CUDA=ON) and not getting it is
# an error.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(STREAMSPLAT_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
  elseif(STREAMSPLAT_NVCC)
    set(CMAKE_CUDA_COMPILER "${STREAMSPLAT_NVCC}")
  else()
    message(FATAL_ERROR "STREAMSPLAT_CUDA=ON needs nvcc, which was not found. Install the CUDA toolkit (12.4 or later), "
      "put its bin folder into PATH or name the compiler: CUDACXX=/usr/local/cuda/bin/nvcc. Without the option, "
      "training renders on the CPU, and the kernels of the runtime are compiled when they are first used.")
  endif()
endif()

# Machine code for every GPU of these that the compiler knows (none before Turing), and PTX of the last one for later
# GPUs. Before enable_language(), which would choose one of its own.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch
    OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_VARIABLE words)
  if(failed)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} --list-gpu-arch failed: ${failed} ${words}. CUDA 12.4 or later is needed.")
  endif()
  foreach(architecture 75 80 86 87 89 90 100 110 120)
    if(known MATCHES "compute_${architecture}\n")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
      set(newest ${architecture})
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
endif()
enable_language(CUDA)
message(STATUS "CUDA code for ${CMAKE_CUDA_ARCHITECTURES} by ${CMAKE_CUDA_COMPILER}")
