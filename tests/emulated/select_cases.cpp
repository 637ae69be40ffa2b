// Runs the CUDA source of select_threshold and write_masks through the harness against loops over the scores,
// as a program of its own, so that it can be built with sanitizers and with planted bugs.
//   select_cases forward|reverse|random
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "select_cut.h"

namespace {

using px::Dtype;
using px::Scores;
using px::cuda::SmallSelectCut;
using px::cuda::SmallWriteCut;

bool failed = false;

unsigned random_bits() {
  static unsigned state = 7;
  return (state = state * 1664525u + 1013904223u) >> 8;
}

void expect(const std::string& what, int64_t at, int64_t got, int64_t expected) {
  if (got == expected || failed) return;
  std::printf("WRONG %s[%lld]: expected %lld, got %lld\n", what.c_str(), static_cast<long long>(at),
              static_cast<long long>(expected), static_cast<long long>(got));
  failed = true;
}

// Memory that starts on or just off a 16-byte boundary, and ends where AddressSanitizer sees the next byte.
template <class T>
class Array {
 public:
  Array(int64_t count, bool aligned) : offset_(aligned ? 0 : 1) {
    const size_t bytes = static_cast<size_t>(count + offset_) * sizeof(T);
    if (posix_memalign(&memory_, 16, bytes ? bytes : 1) != 0) std::abort();
  }
  ~Array() { std::free(memory_); }
  Array(const Array&) = delete;
  Array(Array&& other) : memory_(other.memory_), offset_(other.offset_) { other.memory_ = nullptr; }
  T* data() const { return static_cast<T*>(memory_) + offset_; }

 private:
  void* memory_ = nullptr;
  int64_t offset_;
};

// Tensors of scores with few different keys, negative ones too, some of them masked and some unaligned.
template <class Bits>
struct Case {
  std::vector<Array<Bits>> bits;
  std::vector<Array<uint8_t>> alive, masks;
  std::vector<Scores> tensors;
  std::vector<uint8_t*> table;
  std::vector<int64_t> keys;  // of all alive scores, in order
  int64_t total = 0;

  Case() {
    const int64_t counts[] = {0, 1, 37, 0, 900, 530, 1301, 16, 0};
    for (size_t i = 0; i < std::size(counts); ++i) {
      const int64_t n = counts[i];
      const bool aligned = i % 3 != 0, masked = i % 2 == 0;
      bits.emplace_back(n, aligned), alive.emplace_back(n, aligned), masks.emplace_back(n, i % 2 == 0);
      for (int64_t j = 0; j < n; ++j) {
        const Bits magnitude = static_cast<Bits>(random_bits() % 40) << (8 * sizeof(Bits) - 9);
        const bool negative = random_bits() % 4 == 0;
        bits[i].data()[j] = negative ? magnitude | std::numeric_limits<Bits>::min() : magnitude;
        alive[i].data()[j] = !masked || random_bits() % 3 != 0;
        if (alive[i].data()[j]) keys.push_back(negative ? -int64_t{magnitude} : int64_t{magnitude});
      }
      tensors.push_back({bits[i].data(), masked ? alive[i].data() : nullptr, n, total});
      table.push_back(masks[i].data());
      total += n;
    }
  }

  int64_t number() const { return static_cast<int64_t>(tensors.size()); }

  void count(Dtype dtype, int64_t low, int shift, int width) const {
    std::vector<int64_t> counts(px::counts_of(width)), expected(counts.size());
    std::vector<Scores> scratch(px::cuda::histogram_scratch_bytes(number()) / sizeof(Scores));
    px::cuda::histogram<SmallSelectCut>(tensors.data(), number(), total, dtype, low, shift, width,
                                        counts.data(), scratch.data(), emulated::stream);
    const int64_t size = int64_t{1} << width, infinity = px::infinity_key(dtype);
    for (const int64_t key : keys) {
      const bool below = key<low, above = key> px::last_key(dtype, low, shift + width);
      const uint64_t distance = static_cast<uint64_t>(key) - static_cast<uint64_t>(low);
      ++expected[below ? size + 1 : above ? size : distance >> shift];
      expected[size + 2] += key >= infinity || key <= -infinity;
    }
    for (size_t i = 0; i < counts.size(); ++i)
      expect("counts of " + std::to_string(width) + " bits", i, counts[i], expected[i]);
  }

  void write(Dtype dtype, int64_t key, int64_t ties, int64_t equal) const {
    const auto bytes = px::cuda::mask_scratch_bytes<SmallWriteCut>(number(), total, ties, equal);
    std::vector<int64_t> scratch(bytes / 8, -1);
    px::cuda::masks_of<SmallWriteCut>(tensors.data(), table.data(), scratch.data(), number(), total, dtype,
                                      key, ties, equal, emulated::stream);
    int64_t next = 0, seen = 0;
    for (int64_t i = 0; i < number(); ++i) {
      for (int64_t j = 0; j < tensors[i].count; ++j) {
        const bool lives = alive[i].data()[j];
        const int64_t k = lives ? keys[next++] : 0;
        const bool tied = lives && k == key;
        const std::string what = "mask " + std::to_string(i) + " with " + std::to_string(ties) + " ties";
        expect(what, j, masks[i].data()[j], lives && (k > key || (tied && seen < ties)));
        seen += tied;
      }
    }
  }

  void run(Dtype dtype) const {
    const int width = 8 * sizeof(Bits);
    const int64_t key = keys[keys.size() / 2];
    count(dtype, -px::greatest_key(dtype) - 1, width - 6, 6);
    count(dtype, -px::greatest_key(dtype) - 1, width - 9, 9);
    count(dtype, key, 0, 3);
    count(dtype, key, width - 9, 4);
    int64_t equal = 0;
    for (const int64_t k : keys) equal += k == key;
    for (const int64_t ties : {int64_t{0}, int64_t{1}, equal / 2, equal - 1, equal})
      write(dtype, key, ties, equal);
  }
};

}  // namespace

int main(int argc, char** argv) {
  try {
    emulated::schedule.order = emulated::order_named(argc > 1 ? argv[1] : "");
    Case<int32_t>().run(Dtype::f32);
    Case<int16_t>().run(Dtype::bf16);
    Case<int64_t>().run(Dtype::f64);
  } catch (const std::exception& error) {
    std::printf("ERROR %s\n", error.what());
    failed = true;
  }
  if (!failed) std::printf("PASSED\n");
  return failed;
}
