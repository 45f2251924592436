// What compute-sanitizer's memcheck and racecheck look for on a GPU, in kernels that run on the CPU.
//
// The compiler (-fsanitize=thread, without its library) calls the functions at the end before every access to memory.
// An error are two accesses of the same byte, one of them a write, by different threads of a block between the same two
// barriers, or by different blocks of a launch; atomics are at peace with each other. Votes and shuffles order nothing,
// as in CUDA: what the lanes of a warp have in common by running in step shows as well. Further errors: addresses that
// are no multiple of the size, which a CPU lets pass, and those outside of what `allow` was told.
#ifndef STREAMSPLAT_TESTS_WATCH_ON_CPU_H_
#define STREAMSPLAT_TESTS_WATCH_ON_CPU_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace cuda_on_cpu {
inline bool watching = false;  // a fiber is in the code of a kernel
}

#if defined(__SANITIZE_THREAD__)
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))

extern "C" char __ehdr_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));

namespace cuda_on_cpu {

class Watch {
 public:
  int block = 0, thread = 0;
  std::uintptr_t stack_begin = 0, stack_end = 0, shared_begin = 0, shared_end = 0;
  void (*stop)() = nullptr;  // leaves the fiber for good

  UNWATCHED void next_launch() { launch_ = ++runs_, block = -1; }
  UNWATCHED void next_block() { ++block, run_ = ++runs_, ++epoch_; }
  UNWATCHED void barrier() { ++epoch_; }
  UNWATCHED bool failed() const { return !problem_.empty(); }
  UNWATCHED std::string take_problem() { return std::exchange(problem_, ""); }

  // Device memory that kernels may use. Without any, all memory is.
  UNWATCHED void allow(const void* memory, std::size_t size) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    // What was there before is gone.
    auto range = allowed_.upper_bound(begin);
    while (range != allowed_.end() && range->second < begin + size) range = allowed_.erase(range);
    allowed_[begin + size] = begin;
  }

  UNWATCHED void touch(const void* memory, std::size_t size, bool write, bool atomic = false, bool typed = true) {
    if (!watching) return;
    watching = false;  // the standard library is watched as well
    look_at(memory, size, write, atomic, typed);
    if (failed()) stop();  // at once: the access itself may end the process
    watching = true;
  }

 private:
  UNWATCHED void look_at(const void* memory, std::size_t size, bool write, bool atomic, bool typed) {
    const auto at = reinterpret_cast<std::uintptr_t>(memory);
    if (at >= stack_begin && at < stack_end) return;
    const bool shared = at >= shared_begin && at < shared_end;
    if (typed && at % size != 0) complain("a misaligned address", nullptr);
    if (!shared && !is_allowed(at, size)) complain("an address outside of all arrays", nullptr);
    for (std::uintptr_t a = at; a < at + size; ++a) {
      Cell& cell = cell_of(a);
      const std::uint64_t run = shared ? run_ : launch_;
      if (cell.run != run) cell = Cell{run, {}, {}};
      if (disagree(cell.written, atomic)) complain(write ? "two writes" : "a read after a write", &cell.written);
      if (write && disagree(cell.read, atomic)) complain("a write after a read", &cell.read);
      note(write ? &cell.written : &cell.read, atomic);
    }
  }

  // The last access to a byte. `others`: threads of the block had the same since the last barrier; `blocks`: other
  // blocks of the launch had.
  struct Mark {
    int block = -1, thread = -1;
    std::uint64_t epoch = 0;
    bool atomic = true, others = false, blocks = false;
  };
  struct Cell {
    std::uint64_t run = 0;
    Mark written, read;
  };
  static constexpr std::uintptr_t kPage = 4096;
  using Page = std::array<Cell, kPage>;

  UNWATCHED bool disagree(const Mark& mark, bool atomic) const {
    if (mark.thread < 0 || (mark.atomic && atomic)) return false;
    if (mark.block != block || mark.blocks) return true;
    return mark.epoch == epoch_ && (mark.thread != thread || mark.others);
  }

  UNWATCHED void note(Mark* mark, bool atomic) const {
    const bool known = mark->thread >= 0, same = known && mark->block == block && mark->epoch == epoch_;
    mark->blocks = mark->blocks || (known && mark->block != block);
    mark->others = same && (mark->others || mark->thread != thread);
    mark->atomic = atomic && (mark->atomic || !(same || mark->blocks));
    mark->block = block, mark->thread = thread, mark->epoch = epoch_;
  }

  UNWATCHED bool is_allowed(std::uintptr_t at, std::size_t size) const {
    if (allowed_.empty()) return true;
    if (at >= reinterpret_cast<std::uintptr_t>(__ehdr_start) && at < reinterpret_cast<std::uintptr_t>(_end))
      return true;
    const auto range = allowed_.upper_bound(at);
    return range != allowed_.end() && at >= range->second && at + size <= range->first;
  }

  UNWATCHED Cell& cell_of(std::uintptr_t at) {
    if (last_ == nullptr || at / kPage != last_number_) {
      std::unique_ptr<Page>& page = pages_[at / kPage];
      if (page == nullptr) page = std::make_unique<Page>();
      last_ = page.get(), last_number_ = at / kPage;
    }
    return (*last_)[at % kPage];
  }

  UNWATCHED void complain(const char* what, const Mark* other) {
    if (!problem_.empty()) return;
    problem_ = std::string(what) + ": thread " + std::to_string(thread) + " of block " + std::to_string(block);
    if (other != nullptr)
      problem_ += " and thread " + std::to_string(other->thread) + " of block " + std::to_string(other->block);
  }

  std::uint64_t runs_ = 0, launch_ = 0, run_ = 0, epoch_ = 0;
  std::map<std::uintptr_t, std::uintptr_t> allowed_;  // end -> begin
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  Page* last_ = nullptr;
  std::uintptr_t last_number_ = 0;
  std::string problem_;
};

UNWATCHED inline Watch& watch() {
  static Watch the_watch;
  return the_watch;
}

}  // namespace cuda_on_cpu

#pragma GCC visibility push(hidden)
extern "C" {
UNWATCHED static void touch(void* at, std::size_t size, bool write, bool typed) {
  if (cuda_on_cpu::watching) cuda_on_cpu::watch().touch(at, size, write, false, typed);
}
#define WATCHED(size)                                                                    \
  UNWATCHED void __tsan_read##size(void* at) { touch(at, size, false, true); }           \
  UNWATCHED void __tsan_write##size(void* at) { touch(at, size, true, true); }           \
  UNWATCHED void __tsan_unaligned_read##size(void* at) { touch(at, size, false, true); } \
  UNWATCHED void __tsan_unaligned_write##size(void* at) { touch(at, size, true, true); }
WATCHED(1)
WATCHED(2)
WATCHED(4)
WATCHED(8)
WATCHED(16)
UNWATCHED void __tsan_read_range(void* at, std::size_t size) { touch(at, size, false, false); }
UNWATCHED void __tsan_write_range(void* at, std::size_t size) { touch(at, size, true, false); }
UNWATCHED void __tsan_init() {}
UNWATCHED void __tsan_func_entry(void*) {}
UNWATCHED void __tsan_func_exit() {}
}
#pragma GCC visibility pop
#undef WATCHED

#else  // compiled without: nothing is watched
#define UNWATCHED

namespace cuda_on_cpu {

struct Watch {
  int thread = 0;
  std::uintptr_t stack_begin = 0, stack_end = 0, shared_begin = 0, shared_end = 0;
  void (*stop)() = nullptr;

  void next_launch() {}
  void next_block() {}
  void barrier() {}
  bool failed() const { return false; }
  std::string take_problem() { return ""; }
  void allow(const void*, std::size_t) {}
  void touch(const void*, std::size_t, bool, bool) {}
};

inline Watch& watch() {
  static Watch the_watch;
  return the_watch;
}

}  // namespace cuda_on_cpu

#endif

namespace cuda_on_cpu {

UNWATCHED inline void set_watching(bool on) { watching = on; }

// Runs a kernel in a fiber. Its arguments must be on the fiber's stack, as they are a thread's own on a GPU.
template <class Kernel, class Arguments>
UNWATCHED void call(Kernel kernel, Arguments& arguments) {
  watching = true;
  std::apply(kernel, arguments);
  watching = false;
}

}  // namespace cuda_on_cpu

#endif  // STREAMSPLAT_TESTS_WATCH_ON_CPU_H_
