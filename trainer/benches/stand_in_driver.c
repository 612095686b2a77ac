// A stand-in for NVIDIA's driver that computes nothing: `train` believes in an H200 and compiles every kernel of a step for
// it, on a machine without a GPU. Memory is the host's, launches do nothing, every time is 100 ms (CubeCL repeats what takes no time until it has).
//
//     gcc -O1 -shared -fPIC -o driver/libcuda.so stand_in_driver.c -Wl,-soname,libstand_in.so
//     pip install nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt nvidia-cuda-cccl
//     ln -s libcuda.so driver/libnvidia-ml.so.1
//     CUDA_PATH=.../nvidia/cu13 LD_LIBRARY_PATH=driver:.../nvidia/cu13/lib train --config small-gpu.toml --random-weights ...
//
// What it leaves in ~/.cache/vqgan-trainer/kernels spares a GPU the compilation. What it says of speed is worth nothing: before the
// file goes to a GPU, delete from `entries` where `namespace like 'autotune%'`. The library must not be called libcuda.so.1, a
// name by which NVRTC looks for a driver of its own.
//
// STAND_IN_MEMORY    bytes that the GPU has: what does not fit is refused as a GPU refuses it
// STAND_IN_LAUNCHES  a file for the number of launches of each kernel, written when the program ends
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
typedef void *Handle;
typedef unsigned long long Device;
typedef size_t Size;

enum { OK = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 101, UNSUPPORTED = 801 };
static Size total = 150109880320ULL;
static atomic_size_t in_use;

// A kernel, which is what its handle points to.
typedef struct Kernel {
    char *name;
    atomic_size_t launches;
    struct Kernel *next;
} Kernel;
static Kernel *kernels;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *bytes = getenv("STAND_IN_MEMORY");
    if (bytes) total = strtoull(bytes, NULL, 10);
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("STAND_IN_LAUNCHES");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (Kernel *kernel = kernels; kernel; kernel = kernel->next)
        if (kernel->launches) fprintf(file, "%zu\t%s\n", (Size)kernel->launches, kernel->name);
    fclose(file);
}

static Handle next_handle(void) {
    static uintptr_t last = 0x1000;
    return (Handle)(++last);
}

// The device's memory begins at a multiple of 512; what it takes stands before it.
typedef struct {
    void *whole;
    Size bytes;
} Allocation;

static Device from_host(Size bytes) {
    char *whole = calloc(bytes + 1024, 1);
    Device address = ((Device)whole + 512 + 511) & ~511ULL;
    ((Allocation *)address)[-1] = (Allocation){whole, bytes};
    return address;
}

static void to_host(Device address) { free(((Allocation *)address)[-1].whole); }

static Result allocate(Device *address, Size bytes) {
    if (atomic_fetch_add(&in_use, bytes) + bytes > total) {
        atomic_fetch_sub(&in_use, bytes);
        return OUT_OF_MEMORY;
    }
    *address = from_host(bytes);
    return OK;
}

static Result release(Device address) {
    if (!address) return OK;
    atomic_fetch_sub(&in_use, ((Allocation *)address)[-1].bytes);
    to_host(address);
    return OK;
}

// The device and its context.
Result cuInit(unsigned flags) { return OK; }
Result cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Result cuDeviceGetCount(int *count) { *count = 1; return OK; }
Result cuDeviceGet(int *device, int index) { *device = index; return index == 0 ? OK : NO_DEVICE; }
Result cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "NVIDIA H200"); return OK; }
Result cuDeviceTotalMem_v2(Size *bytes, int device) { *bytes = total; return OK; }
Result cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 1, 16); return OK; }
Result cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 1, 16); return OK; }
Result cuDeviceGetLuid(char *luid, unsigned *mask, int device) { return UNSUPPORTED; }
Result cuDeviceGetPCIBusId(char *id, int size, int device) { snprintf(id, size, "0000:00:05.0"); return OK; }
Result cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 9; *minor = 0; return OK; }
Result cuDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;   // threads in a block: all, x, y
    case 4: *value = 64; break;                     // z
    case 5: *value = 2147483647; break;             // blocks in a grid: x
    case 6: case 7: *value = 65535; break;          // y, z
    case 8: *value = 49152; break;                  // shared memory of a block
    case 10: *value = 32; break;                    // threads in a warp
    case 12: case 82: *value = 65536; break;        // registers
    case 13: *value = 1980000; break;               // clock, kHz
    case 14: *value = 512; break;                   // alignment of textures
    case 16: *value = 132; break;                   // multiprocessors
    case 36: *value = 3201000; break;               // clock of the memory, kHz
    case 37: *value = 6144; break;                  // its bus, bits
    case 38: *value = 62914560; break;              // L2 cache
    case 39: *value = 2048; break;                  // threads on a multiprocessor
    case 75: *value = 9; break;                     // compute capability
    case 76: *value = 0; break;
    case 81: *value = 233472; break;                // shared memory of a multiprocessor
    case 97: *value = 232448; break;                // shared memory that a block can ask for
    case 106: *value = 32; break;                   // blocks on a multiprocessor
    case 18: case 20: case 33: case 50: *value = 0; break;
    default: *value = 1;
    }
    return OK;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = (Handle)0x1000; return OK; }
Result cuDevicePrimaryCtxRelease(int device) { return OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
Result cuCtxSetCurrent(Handle context) { return OK; }
Result cuCtxGetCurrent(Handle *context) { *context = (Handle)0x1000; return OK; }
Result cuCtxGetDevice(int *device) { *device = 0; return OK; }
Result cuCtxSynchronize(void) { return OK; }
Result cuCtxSetFlags(unsigned flags) { return OK; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
Result cuGetErrorString(Result error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : "a stand-in's error";
    return OK;
}
Result cuGetErrorName(Result error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "STAND_IN";
    return OK;
}

// NVML, for what this process has, which is what is allocated and 400 MiB. The GPU is known by its UUID alone.
typedef struct {
    unsigned process;
    unsigned long long bytes;
    unsigned instance, compute_instance;
} Process;
Result nvmlInit_v2(void) { return OK; }
Result nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(Result error) { return "a stand-in's error"; }
Result nvmlDeviceGetHandleByUUID(const char *uuid, Handle *device) {
    enum { NOT_FOUND = 6 };
    *device = (Handle)1;
    return strcmp(uuid, "GPU-01010101-0101-0101-0101-010101010101") ? NOT_FOUND : OK;
}
Result nvmlDeviceGetComputeRunningProcesses_v3(Handle device, unsigned *count, Process *processes) {
    enum { INSUFFICIENT_SIZE = 7 };
    unsigned room = *count;
    *count = 2;
    if (room < 2) return INSUFFICIENT_SIZE;
    processes[0] = (Process){1, 1 << 30, 0xFFFFFFFF, 0xFFFFFFFF};
    processes[1] = (Process){getpid(), in_use + (400 << 20), 0xFFFFFFFF, 0xFFFFFFFF};
    return OK;
}

// Memory.
Result cuMemGetInfo_v2(Size *available, Size *all) { *all = total; *available = total - in_use; return OK; }
Result cuMemAlloc_v2(Device *address, Size bytes) { return allocate(address, bytes); }
Result cuMemFree_v2(Device address) { return release(address); }
Result cuMemAllocAsync(Device *address, Size bytes, Handle stream) { return allocate(address, bytes); }
Result cuMemFreeAsync(Device address, Handle stream) { return release(address); }
Result cuMemAllocHost_v2(Handle *address, Size bytes) { *address = (Handle)from_host(bytes); return OK; }
Result cuMemFreeHost(Handle address) { to_host((Device)address); return OK; }
Result cuDeviceGetDefaultMemPool(Handle *pool, int device) { *pool = (Handle)1; return OK; }
Result cuMemPoolSetAttribute(Handle pool, int attribute, void *value) { return OK; }
Result cuMemcpyHtoDAsync_v2(Device to, const void *from, Size bytes, Handle stream) { memcpy((void *)to, from, bytes); return OK; }
Result cuMemcpyDtoHAsync_v2(void *to, Device from, Size bytes, Handle stream) { memcpy(to, (void *)from, bytes); return OK; }
Result cuMemcpyDtoDAsync_v2(Device to, Device from, Size bytes, Handle stream) { memmove((void *)to, (void *)from, bytes); return OK; }
Result cuMemsetD8Async(Device to, unsigned char value, Size bytes, Handle stream) { memset((void *)to, value, bytes); return OK; }
typedef struct {
    Size x, y;
    int kind;
    const void *host;
    Device device;
    Handle array;
    Size pitch;
} Side;
typedef struct {
    Side from, to;
    Size width, height;
} Rectangle;
Result cuMemcpy2DAsync_v2(const Rectangle *copy, Handle stream) {
    const int host = 1;
    const char *from = copy->from.kind == host ? copy->from.host : (const char *)copy->from.device;
    char *to = copy->to.kind == host ? (char *)copy->to.host : (char *)copy->to.device;
    from += copy->from.y * copy->from.pitch + copy->from.x;
    to += copy->to.y * copy->to.pitch + copy->to.x;
    for (Size row = 0; row < copy->height; row++) memcpy(to + row * copy->to.pitch, from + row * copy->from.pitch, copy->width);
    return OK;
}

// Streams and events.
Result cuStreamCreate(Handle *stream, unsigned flags) { *stream = next_handle(); return OK; }
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) { *stream = next_handle(); return OK; }
Result cuStreamDestroy_v2(Handle stream) { return OK; }
Result cuStreamSynchronize(Handle stream) { return OK; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return OK; }
Result cuEventCreate(Handle *event, unsigned flags) { *event = next_handle(); return OK; }
Result cuEventDestroy_v2(Handle event) { return OK; }
Result cuEventRecord(Handle event, Handle stream) { return OK; }
Result cuEventSynchronize(Handle event) { return OK; }
Result cuEventQuery(Handle event) { return OK; }
Result cuEventElapsedTime(float *milliseconds, Handle from, Handle to) { *milliseconds = 100; return OK; }
Result cuEventElapsedTime_v2(float *milliseconds, Handle from, Handle to) { *milliseconds = 100; return OK; }

// Kernels.
Result cuModuleLoadData(Handle *module, const void *image) { *module = next_handle(); return OK; }
Result cuModuleUnload(Handle module) { return OK; }
Result cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    Kernel *kernel = calloc(1, sizeof(Kernel));
    kernel->name = strdup(name);
    pthread_mutex_lock(&lock);
    kernel->next = kernels;
    kernels = kernel;
    pthread_mutex_unlock(&lock);
    *function = kernel;
    return OK;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) { return OK; }
Result cuFuncGetAttribute(int *value, int attribute, Handle function) { *value = 0; return OK; }
Result cuLaunchKernel(Handle f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned shared, Handle stream, Handle *arguments, Handle *more) {
    ((Kernel *)f)->launches++;
    return OK;
}
Result cuLaunchKernelEx(const void *config, Handle f, Handle *arguments, Handle *more) {
    ((Kernel *)f)->launches++;
    return OK;
}
Result cuTensorMapEncodeTiled(void *map) { memset(map, 0, 128); return OK; }
Result cuTensorMapEncodeIm2col(void *map) { memset(map, 0, 128); return OK; }
Result cuTensorMapEncodeIm2colWide(void *map) { memset(map, 0, 128); return OK; }
