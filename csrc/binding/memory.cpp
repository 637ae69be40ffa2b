#include "binding/memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace px::binding {

namespace {

constexpr size_t large = 1 << 20;  // bytes: less is the system's allocator's
constexpr size_t page = 1 << 21;   // of the large pages that the system may have

// Asks for large pages: a first write to each small one costs a fault.
void use_large_pages(void* begin, size_t bytes) {
#ifdef __linux__
  const uintptr_t from = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (from + page - 1) / page * page, last = (from + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

class Pool {
 public:
  static Pool& get() {
    static Pool* const pool = new Pool;  // for ever: a tensor may outlive everything else
    return *pool;
  }

  void keep(bool on) {
    const std::lock_guard<std::mutex> lock(mutex_);
    keepers_ += on ? 1 : -1;
    if (keepers_ > 0) return;
    keepers_ = 0;
    peak_ = 0;
    while (!free_.empty()) release(free_.begin());
  }

  // Memory, or null where nothing is kept.
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (keepers_ == 0) return nullptr;
    auto block = free_.lower_bound(bytes);
    if (block == free_.end()) {
      bytes = (bytes + page - 1) / page * page;
      peak_ = std::max(peak_, used_bytes_ + bytes);
      while (!free_.empty() && used_bytes_ + free_bytes_ + bytes > peak_) release(free_.begin());
      void* const begin = std::aligned_alloc(page, bytes);
      if (begin == nullptr) throw std::bad_alloc();
      use_large_pages(begin, bytes);
      used_bytes_ += bytes;
      used_[begin] = bytes;
      return begin;
    }
    void* const begin = block->second;
    free_bytes_ -= block->first;
    used_bytes_ += block->first;
    peak_ = std::max(peak_, used_bytes_);
    used_[begin] = block->first;
    free_.erase(block);
    return begin;
  }

  void give(void* begin) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = used_.find(begin);
    const size_t bytes = block->second;
    used_.erase(block);
    used_bytes_ -= bytes;
    if (keepers_ == 0) {
      std::free(begin);
    } else {
      free_.emplace(bytes, begin);
      free_bytes_ += bytes;
    }
  }

 private:
  void release(std::multimap<size_t, void*>::iterator block) {
    std::free(block->second);
    free_bytes_ -= block->first;
    free_.erase(block);
  }

  std::mutex mutex_;
  int64_t keepers_ = 0;
  std::multimap<size_t, void*> free_;
  std::map<void*, size_t> used_;
  size_t free_bytes_ = 0, used_bytes_ = 0;
  size_t peak_ = 0;  // the most that was in use together
};

}  // namespace

Tensor new_memory(const Tensor& like, const Shape& shape, ScalarType dtype) {
  Shape strides(shape.size());
  int64_t numel = 1;
  for (size_t i = shape.size(); i-- > 0;) strides[i] = numel, numel *= shape[i];
  const size_t bytes = size_t(numel) * (dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 1);
  void* const kept = bytes < large ? nullptr : Pool::get().take(bytes);
  if (kept != nullptr) {
    return torch::stable::from_blob(kept, shape, strides, like.device(), dtype,
                                    [](void* begin) { Pool::get().give(begin); });
  }
  Tensor t = torch::stable::new_empty(like, shape, dtype);
  use_large_pages(t.mutable_data_ptr(), bytes);
  return t;
}

std::optional<Tensor> new_scratch(const Tensor& like, size_t bytes) {
  if (bytes == 0) return std::nullopt;
  return new_memory(like, Shape{static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

void keep_memory(bool on) { Pool::get().keep(on); }

}  // namespace px::binding
