// One call that steps all tensors of one dtype signature: their tiles, shared among the threads.
//
// A plain C interface without torch and without Python. The headers are one idea each: abi.h the
// tables, philox.h the random bits, adamw.h the step, tensor.h one tensor's numbers, walk.h its
// entries, isa.h the instruction sets.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "abi.h"
#include "adamw.h"
#include "isa.h"
#include "tensor.h"
#include "walk.h"

#define EXPORT extern "C" [[gnu::visibility("default")]]

namespace graddrop {
namespace {

// Tiles a thread takes at a time: enough that taking costs nothing, few enough that threads end
// together although tensors cost differently.
constexpr int64_t TILES_PER_CHUNK = 32;

struct Work {
    Kernel kernel;
    std::vector<Tensor> tensors;  // by first_tile, none without tiles
    int64_t n_tiles = 0;
    std::atomic<int64_t> next_tile{0};
};

// What each thread does: take chunks until none is left.
void run(void* data) {
    Work& work = *static_cast<Work*>(data);
    for (;;) {
        int64_t tile = work.next_tile.fetch_add(TILES_PER_CHUNK, std::memory_order_relaxed);
        if (tile >= work.n_tiles) return;
        const int64_t chunk_end = std::min(tile + TILES_PER_CHUNK, work.n_tiles);
        auto after =
            std::upper_bound(work.tensors.begin(), work.tensors.end(), tile,
                             [](int64_t wanted, const Tensor& t) { return wanted < t.first_tile; });
        for (auto t = after - 1; tile < chunk_end; ++t) {
            const int64_t end = std::min(t->first_tile + t->n_tiles, chunk_end);
            for (; tile < end; ++tile) {
                if (t->layout)
                    step_strided(*t, work.kernel, tile - t->first_tile);
                else
                    step_contiguous(*t, work.kernel, t->begin / TILE + tile - t->first_tile);
            }
        }
    }
}

void run_on_own_threads(Work& work, int n_threads) {
    std::vector<std::thread> threads;
    try {
        while (int(threads.size()) < n_threads - 1) threads.emplace_back(run, &work);
    } catch (const std::system_error&) {  // no more to be had: those that there are do it all
    }
    run(&work);
    for (std::thread& thread : threads) thread.join();
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned n_threads, unsigned flags);

}  // namespace
}  // namespace graddrop

// Columns of the tensor, layout and group table that this library was built for.
EXPORT void graddrop_abi(int64_t columns[3]) {
    columns[0] = graddrop::N_TENSOR_COLUMNS;
    columns[1] = graddrop::N_LAYOUT_COLUMNS;
    columns[2] = graddrop::N_GROUP_COLUMNS;
}

// The largest instruction set of this machine for which there is code, enum Isa.
EXPORT int graddrop_best_isa() { return graddrop::best_isa(); }

// Steps all tensors of the table. Returns 0, or 1 if memory ran out, and then nothing has changed.
EXPORT int graddrop_step(const int64_t* tensor_table,  // [n_tensors, N_TENSOR_COLUMNS]
                         int64_t n_tensors,
                         const int64_t* layout_table,  // [n_strided, N_LAYOUT_COLUMNS]
                         const double* group_table,    // [n_groups, N_GROUP_COLUMNS]
                         const int64_t* counters,      // [2], only read
                         double grad_factor,           // multiplies every gradient
                         int param_dtype,              // enum Dtype
                         int grad_dtype,               // enum Dtype
                         int moment_dtype,             // enum Dtype
                         int isa,                      // enum Isa
                         int n_threads,                // >= 1
                         void* gomp_parallel           // GOMP_parallel of torch's OpenMP or null
) {
    using namespace graddrop;
    Work work;
    work.kernel = kernel_of(Isa(isa), Dtype(param_dtype), Dtype(grad_dtype), Dtype(moment_dtype));
    try {
        work.tensors.reserve(size_t(n_tensors));
    } catch (const std::bad_alloc&) {
        return 1;
    }
    for (int64_t i = 0; i < n_tensors; ++i) {
        Tensor t = prepare(tensor_table + i * N_TENSOR_COLUMNS, layout_table, group_table, counters,
                           grad_factor, work.kernel);
        t.first_tile = work.n_tiles;
        work.n_tiles += t.n_tiles;
        if (t.n_tiles > 0) work.tensors.push_back(t);
    }
    if (n_threads == 1 || work.n_tiles <= TILES_PER_CHUNK)
        run(&work);
    else if (gomp_parallel)
        reinterpret_cast<GompParallel>(gomp_parallel)(run, &work, unsigned(n_threads), 0);
    else
        run_on_own_threads(work, n_threads);
    return 0;
}
