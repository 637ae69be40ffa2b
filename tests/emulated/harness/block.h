// One CUDA block: its threads, where they wait for each other, and its shared memory. Whatever a GPU leaves
// undefined here is an error that names the source line, the block and the thread.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "fibers.h"

namespace emulated {

constexpr unsigned kWarpLanes = 32;
constexpr std::size_t kSharedLimit = 227 << 10;  // of a block, on the largest GPUs

struct Place {  // in the kernel's source
  const char* file = "";
  int line = 0;
  bool operator==(const Place& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};
#define EMULATED_HERE const ::emulated::Place here = {__builtin_FILE(), __builtin_LINE()}

struct Index {  // grids and blocks have one dimension, as px::cuda::launch has
  unsigned x = 0;
};

enum class State { ready, waiting, done };

struct Copy {  // from global to shared memory, begun and not waited for; with no source, of zeros
  void* to;
  const void* from;
  std::size_t bytes;
  unsigned group;
};

struct Thread {
  Stack stack;
  State state = State::ready;
  Index index;
  unsigned lane = 0, warp = 0;
  const char* operation = "";  // that it waits in
  Place place;
  std::vector<Copy> copies;
  unsigned copy_groups = 0;  // ended ones
};

// Where the lanes of one mask of one warp meet, and what each brings. Two generations: the first lane may be
// back while the last still reads.
struct Meeting {
  struct Value {
    unsigned char bytes[32];
  };
  unsigned arrived = 0, generation = 0;
  const char* operation = "";
  Place place;
  Value values[2][kWarpLanes];
  char order[2];
};

struct Warp {
  unsigned alive = 0;
  std::map<unsigned, Meeting> meetings;  // by mask
};

struct Block {
  Index index, threads_in_block, blocks_in_grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::map<const void*, void*> shared;  // by declaration
  std::size_t shared_bytes = 0, dynamic_bytes = 0;
  unsigned arrived = 0, ended = 0, generation = 0;
  Place barrier;  // that threads wait in
  char order[2];
  char error[500] = "";
};

inline Block* current_block;
inline Thread* current_thread;
inline Block& block() { return *__atomic_load_n(&current_block, __ATOMIC_RELAXED); }
inline Thread& thread() { return *__atomic_load_n(&current_thread, __ATOMIC_RELAXED); }

inline void set_error(Place place, const Thread& t, const char* what) {
  Block& b = block();
  std::snprintf(b.error, sizeof b.error, "%s:%d: %s [block %u, thread %u]", place.file, place.line, what,
                b.index.x, t.index.x);
}

// Ends the launch. The fibers are abandoned where they stand, so nothing on the way here may own memory.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(Place place, const char* format, ...) {
  char what[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  set_error(place, thread(), what);
  for (;;) leave(thread().stack, false);
}

inline void wait(const char* operation, Place place) {
  Thread& t = thread();
  t.state = State::waiting, t.operation = operation, t.place = place;
  leave(t.stack, false);
}

inline void barrier(const char* operation, Place here) {
  Quiet quiet;
  Block& b = block();
  if (b.ended) fail(here, "%s after %u threads of the block have returned", operation, b.ended);
  if (b.arrived && !(b.barrier == here))
    fail(here, "%s while other threads wait in the one at %s:%d", operation, b.barrier.file, b.barrier.line);
  b.barrier = here;
  char* const order = &b.order[b.generation & 1];
  release(order);
  if (++b.arrived < b.threads.size()) {
    wait(operation, here);
  } else {
    b.arrived = 0, ++b.generation;
    for (Thread& t : b.threads) t.state = State::ready;
  }
  acquire(order);
}

inline void complete(Meeting& meeting, unsigned warp) {
  for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    if (meeting.arrived >> lane & 1) block().threads[warp * kWarpLanes + lane].state = State::ready;
  meeting.arrived = 0, ++meeting.generation;
}

// All living lanes of `mask` meet; returns what each brought. Of the warp's operations __syncwarp alone
// orders memory.
inline const Meeting::Value* meet(unsigned mask, const void* value, std::size_t bytes, const char* operation,
                                  bool orders_memory, Place here) {
  Quiet quiet;
  Thread& t = thread();
  Warp& warp = block().warps[t.warp];
  if (!(mask >> t.lane & 1)) fail(here, "%s: lane %u is not in its own mask %#x", operation, t.lane, mask);
  Meeting& meeting = warp.meetings[mask];
  if (!meeting.arrived) meeting.operation = operation, meeting.place = here;
  if (std::strcmp(meeting.operation, operation) != 0 || !(meeting.place == here))
    fail(here, "%s while other lanes of its mask are in %s at %s:%d", operation, meeting.operation,
         meeting.place.file, meeting.place.line);
  const unsigned generation = meeting.generation & 1;
  if (bytes) std::memcpy(meeting.values[generation][t.lane].bytes, value, bytes);
  if (orders_memory) release(&meeting.order[generation]);
  meeting.arrived |= 1u << t.lane;
  if (meeting.arrived == (mask & warp.alive)) {
    complete(meeting, t.warp);
  } else {
    wait(operation, here);
  }
  if (orders_memory) acquire(&meeting.order[generation]);
  return meeting.values[generation];
}

// What lane `source` brings to the meeting.
template <class T>
T exchange(unsigned mask, T value, int source, const char* operation, Place here) {
  static_assert(sizeof(T) <= sizeof(Meeting::Value));
  Quiet quiet;
  const unsigned present = mask & block().warps[thread().warp].alive;
  const Meeting::Value* const values = meet(mask, &value, sizeof value, operation, false, here);
  if (!(present >> source & 1))
    fail(here, "%s reads lane %d, which is not in mask %#x or has returned", operation, source, mask);
  std::memcpy(&value, values[source].bytes, sizeof value);
  return value;
}

// A thread that returns no longer holds up its warp (but does hold up a barrier).
inline void thread_returned() {
  Quiet quiet;
  Thread& t = thread();
  Warp& warp = block().warps[t.warp];
  warp.alive &= ~(1u << t.lane);
  for (auto& [mask, meeting] : warp.meetings)
    if (meeting.arrived && meeting.arrived == (mask & warp.alive)) complete(meeting, t.warp);
  t.state = State::done;
  ++block().ended;
}

// What fills memory that is not written yet: NaN. Kernels that copy asynchronously may see to NaN in their
// operands, so there it is 3.3e6, as float and as bf16.
constexpr unsigned char kNaN = 0xff, kUnset = 0x4a;

// Shared memory of one declaration in one block. It comes filled, in a heap block of its own, so that what
// was never written shows in the result and what lies outside it is AddressSanitizer's.
inline void* shared_memory(const void* declaration, std::size_t bytes, unsigned char filled = kNaN) {
  Quiet quiet;
  Block& b = block();
  void*& memory = b.shared[declaration];
  if (!memory) {
    if ((b.shared_bytes += bytes) > kSharedLimit) fail({}, "more than 227 KiB of shared memory");
    if (posix_memalign(&memory, 128, bytes) != 0) std::abort();
    std::memset(memory, filled, bytes);
  }
  return memory;
}

// The same for what the launch has made room for.
inline void* dynamic_shared_memory(std::size_t bytes) {
  Quiet quiet;
  Block& b = block();
  if (bytes > b.dynamic_bytes)
    fail({}, "%zu bytes of dynamic shared memory in a launch of %zu", bytes, b.dynamic_bytes);
  return shared_memory(&b.dynamic_bytes, bytes, kUnset);
}

}  // namespace emulated
