// Runs a grid: blocks one after the other, threads one at a time, each until it waits or returns. That is
// the largest skew a GPU could show, so that a missing barrier reads memory that is unwritten or
// overwritten.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "block.h"

namespace emulated {

// The order in which the blocks of a grid and the threads of a block take their turns.
enum class Order { forward, reverse, random };

struct Schedule {
  Order order = Order::forward;
  bool last_block_only = false;  // of grids too large to run

  std::vector<unsigned> permutation(unsigned count) {
    std::vector<unsigned> turns(count);
    for (unsigned i = 0; i < count; ++i) turns[i] = order == Order::reverse ? count - 1 - i : i;
    for (unsigned i = count; order == Order::random && i > 1; --i) std::swap(turns[i - 1], turns[below(i)]);
    return turns;
  }

 private:
  unsigned below(unsigned limit) {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<unsigned>(static_cast<uint64_t>(state_) * limit >> 32);
  }

  uint32_t state_ = 1;
};

inline Schedule schedule;

// Where callers want their work: a launch on any other stream is an error.
inline char stream_of_callers;
inline void* const stream = &stream_of_callers;

inline Order order_named(const std::string& name) {
  if (name == "forward") return Order::forward;
  if (name == "reverse") return Order::reverse;
  if (name == "random") return Order::random;
  throw std::invalid_argument("order must be forward, reverse or random, got " + name);
}

// The kernel of the current launch, called by every fiber; and an address that orders a launch after what
// precedes it.
inline void (*kernel_entry)(void*);
inline void* kernel_arguments;
inline char launch_begins, launch_ends;

EMULATED_NO_TSAN inline void run_thread() {
  after_switch(thread().stack.sanitizer, &scheduler_stack.sanitizer);
  acquire(&launch_begins);
  kernel_entry(kernel_arguments);
  release(&launch_ends);
  thread_returned();
  leave(thread().stack, true);
  std::abort();  // never entered again
}

inline void prepare(Block& b, unsigned index, unsigned threads) {
  b.index = {index};
  b.threads.assign(threads, Thread{});
  b.warps.assign((threads + kWarpLanes - 1) / kWarpLanes, Warp{});
  b.arrived = b.ended = 0, b.shared_bytes = 0;
  const std::vector<Stack> stacks = stack_pool.take(threads, index, run_thread);
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = b.threads[i];
    t.stack = stacks[i];
    t.index = {i}, t.lane = i % kWarpLanes, t.warp = i / kWarpLanes;
    b.warps[t.warp].alive |= 1u << t.lane;
  }
}

inline void run_block(Block& b) {
  for (bool ran = true; ran && !*b.error;) {
    ran = false;
    for (unsigned i : schedule.permutation(static_cast<unsigned>(b.threads.size()))) {
      if (b.threads[i].state != State::ready || *b.error) continue;
      ran = true;
      __atomic_store_n(&current_thread, &b.threads[i], __ATOMIC_RELAXED);
      enter(b.threads[i].stack);
    }
  }
  for (const Thread& t : b.threads)
    if (!*b.error && t.state != State::done)
      set_error(t.place, t,
                (std::string(t.operation) + " is not reached by all threads that it waits for").c_str());
  for (auto& [declaration, memory] : b.shared) std::free(memory);
  b.shared.clear();
}

inline void run_grid(Block& b, unsigned blocks, unsigned threads) {
  Quiet quiet;
  for (unsigned index : schedule.last_block_only ? std::vector{blocks - 1} : schedule.permutation(blocks)) {
    prepare(b, index, threads);
    run_block(b);
    if (*b.error) {
      stack_pool.forget_fibers();
      return;
    }
  }
}

// Runs kernel(arguments...) in `blocks` blocks of `threads` threads and so much dynamic shared memory. Throws
// std::runtime_error for what a GPU leaves undefined, naming the source line.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t dynamic_bytes,
            void* on, Parameters... arguments) {
  if (on != stream) throw std::runtime_error("a launch on another stream than the caller's");
  if (blocks == 0 || threads == 0 || threads > 1024)
    throw std::runtime_error("invalid launch of " + std::to_string(blocks) + " x " + std::to_string(threads));
  auto call = std::make_tuple(kernel, arguments...);
  kernel_arguments = &call;
  kernel_entry = [](void* c) {
    std::apply([](auto* k, auto... a) { k(a...); }, *static_cast<decltype(call)*>(c));
  };
#if defined(__SANITIZE_THREAD__)
  scheduler_stack.sanitizer.fiber = __tsan_get_current_fiber();
#endif
  Block b;
  b.blocks_in_grid = {blocks}, b.threads_in_block = {threads}, b.dynamic_bytes = dynamic_bytes;
  __atomic_store_n(&current_block, &b, __ATOMIC_RELAXED);
  release(&launch_begins);
  run_grid(b, blocks, threads);
  acquire(&launch_ends);
  __atomic_store_n(&current_block, nullptr, __ATOMIC_RELAXED);
  if (*b.error) throw std::runtime_error(b.error);
}

}  // namespace emulated
