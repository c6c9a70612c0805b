// Calls that serve all tensors of one dtype signature: their tiles, shared among the threads.
//
// A plain C interface without torch and without Python. The headers are one idea each: abi.h the
// tables, philox.h the random bits, adamw.h the step, tensor.h one tensor's numbers, walk.h its
// entries, norm.h the gradients' squares, dots.h their products with first moments, objects.h where
// tensors lie, isa.h the instruction sets.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "abi.h"
#include "adamw.h"
#include "dots.h"
#include "isa.h"
#include "norm.h"
#include "objects.h"
#include "tensor.h"
#include "walk.h"

#define EXPORT extern "C" [[gnu::visibility("default")]]

namespace graddrop {
namespace {

// Tiles a thread takes at a time: enough that taking costs nothing, few enough that threads end
// together although tensors cost differently.
constexpr int64_t TILES_PER_CHUNK = 32;

// Where a call finds its tensors.
struct Tables {
    const int64_t* tensors;  // [n_tensors, N_TENSOR_COLUMNS]
    int64_t n_tensors;
    const int64_t* layouts;   // [n_strided, N_LAYOUT_COLUMNS]
    const double* groups;     // [n_groups, N_GROUP_COLUMNS]
    const int64_t* counters;  // [2], only read
};

struct Threads {
    int n;                // >= 1
    void* gomp_parallel;  // GOMP_parallel of torch's OpenMP or null
};

struct Work {
    Kernel kernel;
    std::vector<Tensor> tensors;  // by first_tile, none without tiles
    int64_t n_tiles = 0;
    std::atomic<int64_t> next_tile{0};

    // Takes the tensors that have a gradient, as admit(tensor) leaves them; where that returns
    // false, it stays out. Throws std::bad_alloc, if at all, before the first is admitted.
    template <typename Admit>
    void take(const Tables& tables, double grad_factor, const Admit& admit) {
        BiasCorrections bias_corrections;  // of the tensor that was derived last
        tensors.reserve(size_t(tables.n_tensors));
        for (int64_t i = 0; i < tables.n_tensors; ++i) {
            const int64_t* row = tables.tensors + i * N_TENSOR_COLUMNS;
            if (row[GRAD] == NO_GRAD) continue;
            Tensor t = derive_tensor(row, tables.layouts, tables.groups, tables.counters,
                                     grad_factor, kernel, bias_corrections);
            t.index = i;
            if (!admit(t) || t.n_tiles == 0) continue;
            t.first_tile = n_tiles;
            n_tiles += t.n_tiles;
            tensors.push_back(t);
            if (tensors.size() > 1) (&tensors.back())[-1].next = &tensors.back();
        }
    }
};

// What each thread does: take chunks until none is left.
template <typename OnTile>
void share(Work& work, const OnTile& on_tile) {
    for (;;) {
        int64_t tile = work.next_tile.fetch_add(TILES_PER_CHUNK, std::memory_order_relaxed);
        if (tile >= work.n_tiles) return;
        const int64_t chunk_end = std::min(tile + TILES_PER_CHUNK, work.n_tiles);
        auto after =
            std::upper_bound(work.tensors.begin(), work.tensors.end(), tile,
                             [](int64_t wanted, const Tensor& t) { return wanted < t.first_tile; });
        for (auto t = after - 1; tile < chunk_end; ++t) {
            const int64_t end = std::min(t->first_tile + t->n_tiles, chunk_end);
            for (; tile < end; ++tile) on_tile(*t, tile - t->first_tile);
        }
    }
}

using Run = void (*)(void* data);
using GompParallel = void (*)(Run, void*, unsigned n_threads, unsigned flags);

void run_on_own_threads(Run run, void* data, int n_threads) {
    std::vector<std::thread> threads;
    try {
        while (int(threads.size()) < n_threads - 1) threads.emplace_back(run, data);
    } catch (const std::system_error&) {  // no more to be had: those that there are do it all
    }
    run(data);
    for (std::thread& thread : threads) thread.join();
}

// Calls on_tile(tensor, tile) once for each tile of each tensor.
template <typename OnTile>
void run_on_threads(Work& work, const Threads& threads, const OnTile& on_tile) {
    struct Shared {
        Work& work;
        const OnTile& on_tile;
    } shared{work, on_tile};
    const Run run = [](void* data) {
        const Shared& all = *static_cast<Shared*>(data);
        share(all.work, all.on_tile);
    };
    if (threads.n == 1 || work.n_tiles <= TILES_PER_CHUNK)
        run(&shared);
    else if (threads.gomp_parallel)
        reinterpret_cast<GompParallel>(threads.gomp_parallel)(run, &shared, unsigned(threads.n), 0);
    else
        run_on_own_threads(run, &shared, threads.n);
}

// Calls write(tensor, sum) for each tensor of which tiles are taken, with the sum of what
// on_tile(tensor, tile) returned. Tiles are added up in their order, whoever computed them: the
// same bits for any number of threads. Returns 0, or 1 if memory ran out.
template <typename Sum, typename Admit, typename OnTile, typename Write>
int sum_tiles(Work& work, const Tables& tables, const Threads& threads, const Admit& admit,
              const OnTile& on_tile, const Write& write) {
    std::vector<Sum> parts;  // by tile
    try {
        work.take(tables, 1.0, admit);
        parts.resize(size_t(work.n_tiles));
    } catch (const std::bad_alloc&) {
        return 1;
    }
    run_on_threads(work, threads, [&](const Tensor& t, int64_t tile) {
        parts[size_t(t.first_tile + tile)] = on_tile(t, tile);
    });
    for (const Tensor& t : work.tensors) {
        Sum sum{};
        for (int64_t tile = 0; tile < t.n_tiles; ++tile) sum += parts[size_t(t.first_tile + tile)];
        write(t, sum);
    }
    return 0;
}

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
                         const double* step_scales,    // [n_tensors], multiply steps; null: by 1
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
    const Tables tables{tensor_table, n_tensors, layout_table, group_table, counters};
    try {
        work.take(tables, grad_factor, [&](Tensor& t) {
            float& step_size = t.scalars.step_size;
            if (step_scales) step_size = float(step_size * step_scales[t.index]);
            if (t.dropped && t.site == SITE_FREEZE) return false;  // its step counter stays, too
            *t.finished += 1;
            return true;
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    run_on_threads(work, {n_threads, gomp_parallel}, [&](const Tensor& t, int64_t tile) {
        if (t.layout)
            step_strided(t, work.kernel, tile);
        else
            step_contiguous(t, work.kernel, t.begin / TILE + tile);
    });
    return 0;
}

// Sums of squares of the gradients that the next step will take; changes nothing else. The same
// bits for any number of threads. Returns 0, or 1 if memory ran out.
EXPORT int graddrop_grad_squares(const int64_t* tensor_table,  // as for graddrop_step, with what
                                 int64_t n_tensors,            // follows up to counters
                                 const int64_t* layout_table,  //
                                 const double* group_table,    //
                                 const int64_t* counters,      //
                                 int masked,          // sum those kept, as they enter the moments
                                 int grad_dtype,      // enum Dtype
                                 int isa,             // enum Isa
                                 int n_threads,       // >= 1
                                 void* gomp_parallel,  // as for graddrop_step
                                 double* squares       // [n_tensors], out
) {
    using namespace graddrop;
    Work work;
    work.kernel = kernel_of(Isa(isa), FLOAT32, Dtype(grad_dtype), FLOAT32);
    const SumBlock sum_all = sum_block_of<false>(Isa(isa), Dtype(grad_dtype));
    const SumBlock sum_kept = sum_block_of<true>(Isa(isa), Dtype(grad_dtype));
    std::fill(squares, squares + n_tensors, 0.0);
    return sum_tiles<double>(
        work, {tensor_table, n_tensors, layout_table, group_table, counters},
        {n_threads, gomp_parallel},
        [&](Tensor& t) {
            const bool on_grad = t.site == SITE_GRAD || t.site == SITE_FREEZE;
            if (masked && on_grad) return !t.dropped;
            t.source = SOURCE_NONE;
            return true;
        },
        [&](const Tensor& t, int64_t tile) {
            const SumBlock sum_block = t.source == SOURCE_NONE ? sum_all : sum_kept;
            return t.layout ? sum_strided(t, work.kernel, sum_block, tile)
                            : sum_contiguous(t, work.kernel, sum_block, t.begin / TILE + tile);
        },
        [&](const Tensor& t, double sum) {
            const double factor = masked ? t.scalars.grad_factor : 1.0;
            squares[t.index] = sum * factor * factor;
        });
}

// Products of the gradients that the next step will take with their first moments, as they are, and
// of each with itself; changes nothing else. The same bits for any number of threads. Returns 0, or
// 1 if memory ran out.
EXPORT int graddrop_moment_dots(const int64_t* tensor_table,  // as for graddrop_step, with what
                                int64_t n_tensors,            // follows up to counters
                                const int64_t* layout_table,  //
                                const double* group_table,    //
                                const int64_t* counters,      //
                                int grad_dtype,       // enum Dtype
                                int moment_dtype,     // enum Dtype
                                int isa,              // enum Isa
                                int n_threads,        // >= 1
                                void* gomp_parallel,  // as for graddrop_step
                                double* dots          // [n_tensors, 3], out: gg, gm, mm
) {
    using namespace graddrop;
    Work work;
    work.kernel = kernel_of(Isa(isa), FLOAT32, Dtype(grad_dtype), Dtype(moment_dtype));
    const DotBlock dot_block = dot_block_of(Isa(isa), Dtype(grad_dtype), Dtype(moment_dtype));
    std::fill(dots, dots + 3 * n_tensors, 0.0);
    return sum_tiles<Dots>(
        work, {tensor_table, n_tensors, layout_table, group_table, counters},
        {n_threads, gomp_parallel},
        [](Tensor& t) {
            t.source = SOURCE_NONE;
            return true;
        },
        [&](const Tensor& t, int64_t tile) {
            return t.layout ? dot_strided(t, work.kernel, dot_block, tile)
                            : dot_contiguous(t, work.kernel, dot_block, t.begin / TILE + tile);
        },
        [&](const Tensor& t, const Dots& sum) {
            double* const out = dots + 3 * t.index;
            out[0] = sum.gg;
            out[1] = sum.gm;
            out[2] = sum.mm;
        });
}

// Writes the records of tensors. Returns 0, or -1 with Python's error set.
EXPORT int graddrop_record(void* describe,        // Describe
                           void* const* objects,  // [n], tensors
                           int64_t n,             //
                           int64_t width,         // of a record: EXTENTS + 2 * most dimensions
                           int64_t* records       // [n, width], out
) {
    using namespace graddrop;
    Described d;
    for (int64_t i = 0; i < n; ++i) {
        if (reinterpret_cast<Describe>(describe)(objects[i], &d)) return -1;
        write_record(d, records + i * width);
    }
    return 0;
}

// Whether tensors are as recorded: 1 or 0, or -1 with Python's error set.
EXPORT int graddrop_is_as_recorded(void* describe,         // as for graddrop_record, as what follows
                                   void* const* objects,   // [n]
                                   int64_t n,              //
                                   int64_t width,          //
                                   const int64_t* records,  // [n, width]
                                   const void* none,       // the object that stands for no tensor
                                   int may_move            // addresses may be others
) {
    using namespace graddrop;
    Described d;
    for (int64_t i = 0; i < n; ++i) {
        prefetch_object(objects, i, n, none);
        if (objects[i] == none) continue;
        if (reinterpret_cast<Describe>(describe)(objects[i], &d)) return -1;
        if (!is_as_recorded(d, records + i * width, may_move)) return 0;
    }
    return 1;
}

// Brings a column of origins up to where tensors lie now. Returns 1 if one has moved, else 0; 2 if
// the memory of one has been freed, which ends it there; -1 with Python's error set.
EXPORT int graddrop_follow(void* describe,        // as for graddrop_is_as_recorded
                           void* const* objects,  // [n]
                           int64_t n,             //
                           const void* none,      // an address of NO_GRAD is written for it
                           int64_t* addresses,    // [n], where they lay; in and out
                           const int64_t* before,  // [n], from there to their origins
                           int64_t* column,       // [n] in steps of `stride`, out
                           int64_t stride         //
) {
    using namespace graddrop;
    Described d;
    int moved = 0;
    for (int64_t i = 0; i < n; ++i) {
        int64_t address = NO_GRAD;
        prefetch_object(objects, i, n, none);
        if (objects[i] != none) {
            if (reinterpret_cast<Describe>(describe)(objects[i], &d)) return -1;
            if (!d.data && n_entries(d)) return 2;
            address = int64_t(d.data);
        }
        if (address == addresses[i]) continue;
        addresses[i] = address;
        column[i * stride] = address == NO_GRAD ? NO_GRAD : address + before[i];
        moved = 1;
    }
    return moved;
}
