// Cutting one tile of a tensor into blocks: where operands lie, which bits are whose.
//
// A block that is not whole or not contiguous is copied to one that is. So each entry sees the same
// operations wherever it lies, and results do not depend on how a parameter is cut.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "adamw.h"
#include "philox.h"
#include "tensor.h"

namespace graddrop {

INLINE void* at(uintptr_t origin, int64_t index, int size) {
    return reinterpret_cast<void*>(origin + uintptr_t(index) * uintptr_t(size));
}

INLINE Operands operands_at(const Tensor& t, const Kernel& kernel, int64_t element) {
    return {at(t.param, element, kernel.param_size), at(t.grad, element, kernel.grad_size),
            at(t.exp_avg, element, kernel.moment_size),
            at(t.exp_avg_sq, element, kernel.moment_size)};
}

// Operands are asked for four blocks before their turn: fewer come too late, more push out of the
// first-level cache what was asked for before (bench/NOTES.md).
constexpr int64_t AHEAD = 4 * BLOCK;

// Where the walk will be by then. Where the tensor ends before, the next one follows, of which the
// chip's own prefetching knows nothing.
INLINE Operands operands_ahead(const Tensor& t, const Kernel& kernel, int64_t element) {
    const int64_t beyond = element + AHEAD - t.end;
    if (beyond < 0 || !t.next) return operands_at(t, kernel, element + AHEAD);
    return operands_at(*t.next, kernel, (t.next->begin + beyond) / BLOCK * BLOCK);
}

struct Range {
    int from, to;
    bool empty() const { return from >= to; }
};

// Entries of the block that lie in [t.begin, t.end).
INLINE Range inside_block(const Tensor& t, int64_t element) {
    return {int(std::clamp<int64_t>(t.begin - element, 0, BLOCK)),
            int(std::clamp<int64_t>(t.end - element, 0, BLOCK))};
}

inline void fill_rows(const Tensor& t, int64_t element, Range range, Drawer& drawer,
                      uint32_t* bits) {
    int64_t row = (element + range.from) / t.row_size;
    for (int i = range.from; i < range.to; ++row) {
        const int64_t row_end = (row + 1) * t.row_size - element;
        const int to = int(std::min<int64_t>(row_end, range.to));
        std::fill(bits + i, bits + to, drawer.u16(row));
        i = to;
    }
}

// The bits of a block of a loaded mask, whose first entry is the first of a byte: not 0 where kept.
INLINE void fill_loaded(const Tensor& t, int64_t element, uint32_t* bits) {
    const auto* bytes = static_cast<const uint8_t*>(at(t.keep_bits, element / 8, 1));
    for (int byte = 0; byte < BLOCK / 8; ++byte)
        for (int bit = 0; bit < 8; ++bit) bits[8 * byte + bit] = bytes[byte] & 1u << bit;
}

// Room for one block of each operand, whatever its dtype.
struct Copy {
    alignas(64) unsigned char param[4 * BLOCK] = {};
    alignas(64) unsigned char grad[4 * BLOCK] = {};
    alignas(64) unsigned char exp_avg[4 * BLOCK] = {};
    alignas(64) unsigned char exp_avg_sq[4 * BLOCK] = {};
};

inline void step_in_copy(const Tensor& t, const Kernel& kernel, int64_t element, Range range,
                         Bits mask, Bits rounding) {
    Copy copy;
    const int n = range.to - range.from;
    void* const param = at(t.param, element + range.from, kernel.param_size);
    void* const grad = at(t.grad, element + range.from, kernel.grad_size);
    void* const exp_avg = at(t.exp_avg, element + range.from, kernel.moment_size);
    void* const exp_avg_sq = at(t.exp_avg_sq, element + range.from, kernel.moment_size);
    std::memcpy(copy.param, param, n * kernel.param_size);
    std::memcpy(copy.grad, grad, n * kernel.grad_size);
    std::memcpy(copy.exp_avg, exp_avg, n * kernel.moment_size);
    std::memcpy(copy.exp_avg_sq, exp_avg_sq, n * kernel.moment_size);
    alignas(64) uint32_t mask_words[BLOCK] = {}, rounding_words[BLOCK] = {};
    std::copy(mask.words + range.from, mask.words + range.to, mask_words);
    std::copy(rounding.words + range.from, rounding.words + range.to, rounding_words);
    t.step_block({copy.param, copy.grad, copy.exp_avg, copy.exp_avg_sq},
                 operands_ahead(t, kernel, element), {mask_words, mask.shift},
                 {rounding_words, rounding.shift}, t.scalars);
    std::memcpy(param, copy.param, n * kernel.param_size);
    std::memcpy(exp_avg, copy.exp_avg, n * kernel.moment_size);
    std::memcpy(exp_avg_sq, copy.exp_avg_sq, n * kernel.moment_size);
}

// The part of one tile of the whole parameter that lies in [t.begin, t.end), block by block:
// visit(first element of the block, entries of it in the range, bits of the mask, of rounding).
template <typename Visit>
INLINE void visit_contiguous(const Tensor& t, const Kernel& kernel, int64_t tile,
                             const Visit& visit) {
    static constexpr uint32_t NO_BITS[BLOCK] = {};  // below every threshold but 0
    alignas(64) uint32_t mask_words[TILE / 2], rounding_words[TILE / 2];
    Drawer drawer(t.stream);
    const auto draw = [&](int start) {
        const int64_t element = tile * TILE + start;
        if (start >= TILE / 2) return;  // high halves of what is drawn already
        if (inside_block(t, element).empty() && inside_block(t, element + TILE / 2).empty()) return;
        const uint64_t group = uint64_t(tile * (TILE / 8) + start / 4);
        if (t.source == SOURCE_ELEMENT) kernel.draw_block(group, t.stream, mask_words + start);
        if (kernel.stochastic) kernel.draw_block(group, t.rounding, rounding_words + start);
    };
    draw(0);
    for (int start = 0; start < TILE; start += BLOCK) {
        draw(start + BLOCK);  // before it is needed: while this block waits for roots and quotients
        const int64_t element = tile * TILE + start;
        const Range range = inside_block(t, element);
        if (range.empty()) continue;
        const int at_word = start % (TILE / 2), shift = start < TILE / 2 ? 0 : 16;
        Bits mask{mask_words + at_word, shift};
        if (t.source == SOURCE_NONE) {
            mask = {NO_BITS, 0};
        } else if (t.source == SOURCE_ROW) {
            fill_rows(t, element, range, drawer, mask_words + at_word);
            mask.shift = 0;
        } else if (t.source == SOURCE_LOADED) {
            fill_loaded(t, element, mask_words + at_word);
            mask.shift = 0;
        }
        visit(element, range, mask, Bits{rounding_words + at_word, shift});
    }
}

inline void step_contiguous(const Tensor& t, const Kernel& kernel, int64_t tile) {
    visit_contiguous(
        t, kernel, tile, [&](int64_t element, Range range, Bits mask, Bits rounding) {
            if (range.to - range.from == BLOCK)
                t.step_block(operands_at(t, kernel, element), operands_ahead(t, kernel, element),
                             mask, rounding, t.scalars);
            else
                step_in_copy(t, kernel, element, range, mask, rounding);
        });
}

INLINE void copy_entry(void* to, const void* from, int size) {
    if (size == 4)
        std::memcpy(to, from, 4);
    else
        std::memcpy(to, from, 2);
}

// The multi-dimensional index of a local entry, and what it amounts to in each operand.
class Walk {
  public:
    Walk(const Tensor& t, int64_t entry) : layout_(t.layout), n_dims_(int(t.layout[N_DIMS])) {
        element = t.begin;
        for (int dim = n_dims_ - 1; dim >= 0; --dim) {
            index_[dim] = entry % layout_[SIZES + dim];
            entry /= layout_[SIZES + dim];
            move(dim, index_[dim]);
        }
    }

    void next() {
        for (int dim = n_dims_ - 1; dim >= 0; --dim) {
            move(dim, 1);
            if (++index_[dim] < layout_[SIZES + dim]) return;
            move(dim, -index_[dim]);
            index_[dim] = 0;
        }
    }

    int64_t param = 0, grad = 0, moment = 0, element;

  private:
    void move(int dim, int64_t n) {
        param += n * layout_[PARAM_STRIDES + dim];
        grad += n * layout_[GRAD_STRIDES + dim];
        moment += n * layout_[MOMENT_STRIDES + dim];
        element += n * layout_[ELEMENT_STRIDES + dim];
    }

    const int64_t* layout_;
    int n_dims_;
    int64_t index_[MAX_DIMS];
};

// Bits of a strided tensor's entry, which has its place in the walk and its index in the whole.
INLINE uint32_t entry_bits(const Tensor& t, Drawer& drawer, int64_t place, int64_t element) {
    if (t.source == SOURCE_ELEMENT) return drawer.u16(element);
    if (t.source == SOURCE_ROW) return drawer.u16(element / t.row_size);
    if (t.source == SOURCE_LOADED) {
        const int64_t number = t.begin + place;
        return *static_cast<const uint8_t*>(at(t.keep_bits, number / 8, 1)) & 1u << number % 8;
    }
    return 0;
}

// Local entries from TILE * tile on, in walking order.
inline void step_strided(const Tensor& t, const Kernel& kernel, int64_t tile) {
    const int64_t end = std::min((tile + 1) * TILE, t.end - t.begin);
    Walk entry(t, tile * TILE);
    Drawer drawer(t.stream), rounding_drawer(t.rounding);
    alignas(64) uint32_t mask[BLOCK] = {}, rounding[BLOCK] = {};
    for (int64_t first = tile * TILE; first < end; first += BLOCK) {
        Copy copy;
        void *param[BLOCK], *exp_avg[BLOCK], *exp_avg_sq[BLOCK];
        const int n = int(std::min<int64_t>(end - first, BLOCK));
        for (int i = 0; i < n; ++i, entry.next()) {
            param[i] = at(t.param, entry.param, kernel.param_size);
            exp_avg[i] = at(t.exp_avg, entry.moment, kernel.moment_size);
            exp_avg_sq[i] = at(t.exp_avg_sq, entry.moment, kernel.moment_size);
            copy_entry(copy.param + i * kernel.param_size, param[i], kernel.param_size);
            copy_entry(copy.grad + i * kernel.grad_size, at(t.grad, entry.grad, kernel.grad_size),
                       kernel.grad_size);
            copy_entry(copy.exp_avg + i * kernel.moment_size, exp_avg[i], kernel.moment_size);
            copy_entry(copy.exp_avg_sq + i * kernel.moment_size, exp_avg_sq[i], kernel.moment_size);
            mask[i] = entry_bits(t, drawer, first + i, entry.element);
            if (kernel.stochastic) rounding[i] = rounding_drawer.u16(entry.element);
        }
        const Operands block{copy.param, copy.grad, copy.exp_avg, copy.exp_avg_sq};
        t.step_block(block, block, {mask, 0}, {rounding, 0}, t.scalars);
        for (int i = 0; i < n; ++i) {
            copy_entry(param[i], copy.param + i * kernel.param_size, kernel.param_size);
            copy_entry(exp_avg[i], copy.exp_avg + i * kernel.moment_size, kernel.moment_size);
            copy_entry(exp_avg_sq[i], copy.exp_avg_sq + i * kernel.moment_size, kernel.moment_size);
        }
    }
}

}  // namespace graddrop
