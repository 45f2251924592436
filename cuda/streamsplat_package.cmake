# Installs the rasterizer's library and header as a CMake package, for `find_package(streamsplat_edge)`.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/../src/streamsplat_edge/_version.py version_line REGEX "^__version__ = ")
if(NOT version_line MATCHES "\"([0-9]+\\.[0-9]+\\.[0-9]+)")
  message(FATAL_ERROR "src/streamsplat_edge/_version.py holds no version number")
endif()
set(streamsplat_version ${CMAKE_MATCH_1})
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/streamsplat_edge)

set_target_properties(streamsplat_raster PROPERTIES EXPORT_NAME raster)
target_include_directories(streamsplat_raster PUBLIC $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(TARGETS streamsplat_raster EXPORT streamsplat_edge-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES streamsplat_raster.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT streamsplat_edge-targets NAMESPACE streamsplat_edge:: DESTINATION ${package_folder})
configure_package_config_file(
  streamsplat_edge-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/streamsplat_edge-config.cmake
  INSTALL_DESTINATION ${package_folder})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/streamsplat_edge-config-version.cmake
  VERSION ${streamsplat_version} COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/streamsplat_edge-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/streamsplat_edge-config-version.cmake
  DESTINATION ${package_folder})
