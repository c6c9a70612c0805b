// One call of the CPU kernel: tables and memory from standard input, memory to standard output.
//
// Built for a machine that is emulated, together with kernels/cpu/graddrop_cpu.cpp. All addresses
// in the tables are moved to where the memory comes to lie here. See tests/helpers/emulation.py.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "abi.h"

using namespace graddrop;

extern "C" int graddrop_step(const int64_t*, int64_t, const int64_t*, const double*, const int64_t*,
                             double, const double*, int, int, int, int, int, void*);
extern "C" int graddrop_grad_squares(const int64_t*, int64_t, const int64_t*, const double*,
                                     const int64_t*, int, int, int, int, void*, double*);
extern "C" int graddrop_moment_dots(const int64_t*, int64_t, const int64_t*, const double*,
                                    const int64_t*, int, int, int, int, void*, double*);

template <typename T>
std::vector<T> read(int64_t n) {
    std::vector<T> values(size_t(n) + 1);  // never empty: there is an address
    if (fread(values.data(), sizeof(T), size_t(n), stdin) != size_t(n)) exit(2);
    return values;
}

void write(const void* data, size_t n_bytes) {
    if (fwrite(data, 1, n_bytes, stdout) != n_bytes) exit(3);
}

int main() {
    enum { CALL, N_TENSORS, N_LAYOUTS, N_GROUPS, N_SEGMENTS, DTYPES, MASKED = DTYPES + 3,
           N_THREADS, N_NUMBERS };
    enum { STEPS, SQUARES, DOTS };
    constexpr int ADDRESSES[] = {PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, KEEP_BITS};
    constexpr int N_ADDRESSES = sizeof ADDRESSES / sizeof *ADDRESSES;
    const auto numbers = read<int64_t>(N_NUMBERS);
    const auto grad_factor = read<double>(1)[0];
    const int64_t n_tensors = numbers[N_TENSORS];
    auto table = read<int64_t>(n_tensors * N_TENSOR_COLUMNS);
    const auto segment_of = read<int64_t>(n_tensors * N_ADDRESSES);  // -1: no address
    const auto layouts = read<int64_t>(numbers[N_LAYOUTS] * N_LAYOUT_COLUMNS);
    const auto groups = read<double>(numbers[N_GROUPS] * N_GROUP_COLUMNS);
    const auto counters = read<int64_t>(2);

    struct Segment {
        char* memory;
        int64_t address, n_bytes;
    };
    std::vector<Segment> segments;
    for (int64_t i = 0; i < numbers[N_SEGMENTS]; ++i) {
        const auto place = read<int64_t>(2);
        Segment segment = {nullptr, place[0], place[1]};
        // aligned as it was, to any power of two that a vector may ask for
        char* room = static_cast<char*>(aligned_alloc(4096, size_t(place[1] / 4096 + 2) * 4096));
        segment.memory = room + place[0] % 4096;
        if (fread(segment.memory, 1, size_t(place[1]), stdin) != size_t(place[1])) return 2;
        segments.push_back(segment);
    }
    for (int64_t i = 0; i < n_tensors; ++i)
        for (int which = 0; which < N_ADDRESSES; ++which) {
            const int64_t k = segment_of[size_t(i * N_ADDRESSES + which)];
            if (k < 0) continue;
            const Segment& segment = segments[size_t(k)];
            table[size_t(i * N_TENSOR_COLUMNS + ADDRESSES[which])] +=
                reinterpret_cast<int64_t>(segment.memory) - segment.address;
        }

    const int n_threads = int(numbers[N_THREADS]);
    std::vector<double> sums(size_t(n_tensors) * (numbers[CALL] == DOTS ? 3 : 1));
    int failed;
    if (numbers[CALL] == SQUARES)
        failed = graddrop_grad_squares(table.data(), n_tensors, layouts.data(), groups.data(),
                                       counters.data(), int(numbers[MASKED]),
                                       int(numbers[DTYPES + 1]), 0, n_threads, nullptr,
                                       sums.data());
    else if (numbers[CALL] == DOTS)
        failed = graddrop_moment_dots(table.data(), n_tensors, layouts.data(), groups.data(),
                                      counters.data(), int(numbers[DTYPES + 1]),
                                      int(numbers[DTYPES + 2]), 0, n_threads, nullptr, sums.data());
    else
        failed = graddrop_step(table.data(), n_tensors, layouts.data(), groups.data(),
                               counters.data(), grad_factor, nullptr, int(numbers[DTYPES]),
                               int(numbers[DTYPES + 1]), int(numbers[DTYPES + 2]), 0, n_threads,
                               nullptr);
    if (failed) return failed;
    for (const Segment& segment : segments) write(segment.memory, size_t(segment.n_bytes));
    write(sums.data(), sums.size() * sizeof(double));
    return 0;
}
