// Runs the CUDA source of squared_attention through the harness against the formula in double, as a program
// of its own, so that it can be built with sanitizers and with planted bugs.
//   attention_cases forward|reverse|random
// CASES_WEIGHTS names the element types that are compiled.
#include <vector>

#include "attention_cut.h"
#include "cases.h"

#ifndef CASES_WEIGHTS
#define CASES_WEIGHTS float, bf16, double
#endif

namespace {

enum class Mask { none, forbidding, added };

struct Case {
  int64_t N, H, T, S, D, E, P;
  Mask mask;
  bool narrow;  // k, v and path are the same for all samples
};

// Around tiles of 8 queries, 16 keys, 4 features and 16 or 32 columns.
constexpr Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1, Mask::none, false},        {1, 2, 7, 15, 3, 31, 1, Mask::forbidding, false},
    {2, 1, 8, 16, 4, 32, 16, Mask::added, false},    {1, 1, 9, 17, 5, 33, 17, Mask::forbidding, true},
    {2, 2, 17, 33, 6, 3, 33, Mask::none, true},      {1, 1, 3, 40, 0, 0, 2, Mask::added, false},
    {1, 1, 20, 5, 9, 70, 0, Mask::forbidding, true}, {1, 1, 0, 3, 2, 2, 2, Mask::none, false},
    {1, 2, 3, 0, 2, 2, 2, Mask::none, false},
};

double number(float v) { return v; }
double number(double v) { return v; }
double number(bf16 v) { return __bfloat162float(v); }

void compare(const std::string& what, double got, double expected, double tolerance) {
  if (failed || std::fabs(got - expected) <= tolerance) return;
  std::printf("WRONG %s: expected %.9g, got %.9g\n", what.c_str(), expected, got);
  failed = true;
}

template <class Element>
struct Run {
  using Path = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  const Case& c;
  const int64_t kv_heads = (c.narrow ? 1 : c.N) * c.H;
  Array<Element> q{c.N * c.H * c.T * c.D, true}, k{kv_heads * c.S * c.D, false},
      v{kv_heads * c.S * c.E, true};
  Array<Path> path{kv_heads * c.S * c.P, false}, dy{c.N * c.H * c.T * c.P, true};
  Array<uint8_t> forbidding{c.T * c.S, false};
  Array<Path> added{c.T * c.S, true};
  Array<Element> output{c.N * c.H * c.T * c.E, true};
  Array<Path> paths{c.N * c.H * c.T * c.P, false}, dpath{c.N * c.H * c.S * c.P, true};

  explicit Run(const Case& given) : c(given) {
    fill(q, c.N * c.H * c.T * c.D), fill(k, kv_heads * c.S * c.D), fill(v, kv_heads * c.S * c.E);
    fill(path, kv_heads * c.S * c.P), fill(dy, c.N * c.H * c.T * c.P), fill(added, c.T * c.S);
    for (int64_t i = 0; i < c.T * c.S; ++i) forbidding[i] = i / c.S != 1 && random_bits() % 4 > 0;
    for (int64_t i = 0; i < c.T * c.S; i += 3) added[i] = -static_cast<Path>(INFINITY);
  }

  void launch(bool backward) {
    const int64_t one = c.narrow ? 0 : 1;
    px::SquaredAttention call{};
    const auto heads = [&](const void* data, int64_t samples, int64_t rows, int64_t columns) {
      return px::Heads{data, samples * c.H * rows * columns, rows * columns, columns};
    };
    call.q = heads(q.data(), 1, c.T, c.D), call.k = heads(k.data(), one, c.S, c.D);
    call.in = backward ? heads(dy.data(), 1, c.T, c.P) : heads(path.data(), one, c.S, c.P);
    if (!backward) call.v = heads(v.data(), one, c.S, c.E), call.output = output.data();
    if (c.mask != Mask::none) {
      call.mask = {c.mask == Mask::added ? static_cast<void*>(added.data()) : forbidding.data(), 0, 0, c.S};
      call.mask_step = 1, call.mask_added = c.mask == Mask::added;
    }
    call.out = backward ? dpath.data() : paths.data();
    call.N = c.N, call.H = c.H, call.T = c.T, call.S = c.S, call.D = c.D, call.E = c.E, call.P = c.P;
    call.scale = 0.7, call.backward = backward;
    call.dtype = std::is_same_v<Element, double> ? px::Dtype::f64
                 : std::is_same_v<Element, bf16> ? px::Dtype::bf16
                                                 : px::Dtype::f32;
    std::vector<double> scratch(static_cast<size_t>(px::cuda::statistics_bytes(call) / 8 + 1), NAN);
    call.scratch = scratch.data();
    px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, emulated::stream);
  }

  // A of a head, [T, S].
  std::vector<double> probabilities(int64_t head, int64_t kv) {
    std::vector<double> a(static_cast<size_t>(c.T * c.S));
    for (int64_t t = 0; t < c.T; ++t) {
      double sum = 0;
      for (int64_t s = 0; s < c.S; ++s) {
        double logit = 0;
        for (int64_t d = 0; d < c.D; ++d)
          logit += number(q[(head * c.T + t) * c.D + d]) * number(k[(kv * c.S + s) * c.D + d]);
        logit *= 0.7;
        if (c.mask == Mask::added) logit += added[t * c.S + s];
        const bool allowed = c.mask != Mask::forbidding || forbidding[t * c.S + s];
        sum += a[t * c.S + s] = allowed ? std::exp(logit) : 0;
      }
      for (int64_t s = 0; s < c.S; ++s) a[t * c.S + s] /= sum == 0 ? 1 : sum;
    }
    return a;
  }

  void check(const std::string& name) {
    launch(false), launch(true);
    for (int64_t n = 0; n < c.N; ++n)
      for (int64_t h = 0; h < c.H; ++h) {
        const int64_t head = n * c.H + h, kv = c.narrow ? h : head;
        const auto a = probabilities(head, kv);
        const auto sum = [&](auto&& entry, int64_t terms) {
          double total = 0;
          for (int64_t i = 0; i < terms; ++i) total += entry(i);
          return total;
        };
        for (int64_t t = 0; t < c.T; ++t) {
          const int64_t row = (n * c.T + t) * c.H + h;
          for (int64_t e = 0; e < c.E; ++e)
            compare(name + " output", number(output[row * c.E + e]),
                    sum([&](int64_t s) { return a[t * c.S + s] * number(v[(kv * c.S + s) * c.E + e]); }, c.S),
                    0x1p-8);
          for (int64_t p = 0; p < c.P; ++p)
            compare(name + " paths", paths[row * c.P + p],
                    sum(
                        [&](int64_t s) {
                          return a[t * c.S + s] * a[t * c.S + s] * path[(kv * c.S + s) * c.P + p];
                        },
                        c.S),
                    1e-5);
        }
        for (int64_t s = 0; s < c.S; ++s)
          for (int64_t p = 0; p < c.P; ++p)
            compare(name + " dpath", dpath[((n * c.S + s) * c.H + h) * c.P + p],
                    sum(
                        [&](int64_t t) {
                          return a[t * c.S + s] * a[t * c.S + s] * dy[(head * c.T + t) * c.P + p];
                        },
                        c.T),
                    1e-5);
      }
  }
};

template <class... Elements>
void run_all() {
  for (const Case& c : kCases) {
    const std::string name = std::to_string(c.T) + " x " + std::to_string(c.S);
    (Run<Elements>(c).check(std::string(kName<Elements>) + " " + name), ...);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, [] { run_all<CASES_WEIGHTS>(); });
}
