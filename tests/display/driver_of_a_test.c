/* libcuda as far as the display calls it. Where CUDA's headers are installed, theirs are the declarations, and a
   function that differs from them does not compile. */

#if __has_include(<cudaGL.h>) && __has_include(<GL/gl.h>)
#include <cudaGL.h>
int declared_by_nvidia = 1;
#else
#include <stddef.h>
typedef int CUresult, CUdevice, CUGLDeviceList;
typedef unsigned int GLuint;
typedef unsigned long long CUdeviceptr;
typedef struct resource* CUgraphicsResource;
typedef struct stream* CUstream;
#define CUDAAPI
#define cuGLGetDevices cuGLGetDevices_v2
#define cuGraphicsResourceGetMappedPointer cuGraphicsResourceGetMappedPointer_v2
int declared_by_nvidia = 0;
#endif

/* What was said last, and what to answer. */
unsigned long long said[8];
int calls[8];
int answer[8];
int on_devices = 1;
static unsigned char memory[64];
static int resource_of_a_test;

CUresult CUDAAPI cuGLGetDevices(unsigned int* count, CUdevice* devices, unsigned int room, CUGLDeviceList list) {
  ++calls[0], said[0] = room * 10 + list;
  *count = on_devices;
  for (int i = 0; i < on_devices; ++i) devices[i] = 3 + i;
  return answer[0];
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  *device = 3 + ordinal;
  return 0;
}

CUresult CUDAAPI cuGraphicsGLRegisterBuffer(CUgraphicsResource* resource, GLuint buffer, unsigned int flags) {
  ++calls[1], said[1] = buffer * 10 + flags;
  *resource = (CUgraphicsResource)&resource_of_a_test;
  return answer[1];
}

CUresult CUDAAPI cuGraphicsMapResources(unsigned int count, CUgraphicsResource* resources, CUstream stream) {
  ++calls[2], said[2] = (unsigned long long)stream;
  if (count != 1 || *resources != (CUgraphicsResource)&resource_of_a_test) return 400;
  return answer[2];
}

CUresult CUDAAPI cuGraphicsResourceGetMappedPointer(CUdeviceptr* address, size_t* size, CUgraphicsResource resource) {
  ++calls[3];
  *address = (CUdeviceptr)(size_t)memory, *size = sizeof memory;
  return resource == (CUgraphicsResource)&resource_of_a_test ? answer[3] : 400;
}

CUresult CUDAAPI cuGraphicsUnmapResources(unsigned int count, CUgraphicsResource* resources, CUstream stream) {
  ++calls[4], said[4] = (unsigned long long)stream;
  if (count != 1 || *resources != (CUgraphicsResource)&resource_of_a_test) return 400;
  return answer[4];
}

CUresult CUDAAPI cuGraphicsUnregisterResource(CUgraphicsResource resource) {
  ++calls[5];
  return resource == (CUgraphicsResource)&resource_of_a_test ? answer[5] : 400;
}
