// Torch's tensors as Python holds them, described by torch itself through DLPack 1's C functions.
//
// Only addresses of Python's objects come in, and torch alone looks into them: neither torch's
// headers nor Python's are needed. The caller holds Python's lock.

#pragma once

#include <cstdint>

#include "isa.h"

namespace graddrop {

// DLPack's description of a tensor; its fields, in this order, are a binary interface.
struct Described {
    void* data;
    int32_t device_type;
    int32_t device_index;
    int32_t n_dims;
    uint8_t kind;  // of number
    uint8_t bits;
    uint16_t lanes;
    const int64_t* sizes;    // [n_dims]; null without dimensions
    const int64_t* strides;  // likewise, in elements
    uint64_t byte_offset;    // 0: torch's data begin at `data`
};

// Of torch: 0, or anything else and Python's error is set.
using Describe = int (*)(void* object, Described* out);

// Asks for what describing a later object will read. Each tensor lies somewhere else, and describing
// it waits for its object, then for what that points at. Where torch keeps the pointer is a guess,
// one of the two words behind Python's own: an address that is none does no harm.
INLINE void prefetch_object(void* const* objects, int64_t index, int64_t n, const void* none) {
    constexpr int64_t OBJECTS_AHEAD = 8;
    constexpr uintptr_t READ = 192, LINE = 64;  // bytes
    if (index + 2 * OBJECTS_AHEAD < n) __builtin_prefetch(objects[index + 2 * OBJECTS_AHEAD]);
    if (index + OBJECTS_AHEAD >= n || objects[index + OBJECTS_AHEAD] == none) return;
    const auto* words = static_cast<const uintptr_t*>(objects[index + OBJECTS_AHEAD]);
    for (int word = 2; word < 4; ++word)
        for (uintptr_t byte = 0; words[word] && byte < READ; byte += LINE)
            __builtin_prefetch(reinterpret_cast<const void*>(words[word] + byte));
}

// A tensor's record: what the tables and the choice of code rest on.
enum RecordColumn { ADDRESS, DEVICE, DTYPE, RANK, EXTENTS };  // then sizes, then strides

inline int64_t device_of(const Described& d) {
    return int64_t(d.device_type) << 32 | uint32_t(d.device_index);
}

inline int64_t dtype_of(const Described& d) {
    return int64_t(d.kind) << 32 | int64_t(d.bits) << 16 | d.lanes;
}

inline int64_t n_entries(const Described& d) {
    int64_t n = 1;
    for (int32_t i = 0; i < d.n_dims; ++i) n *= d.sizes[i];
    return n;
}

inline void write_record(const Described& d, int64_t* record) {
    record[ADDRESS] = int64_t(d.data);
    record[DEVICE] = device_of(d);
    record[DTYPE] = dtype_of(d);
    record[RANK] = d.n_dims;
    for (int32_t i = 0; i < d.n_dims; ++i) {
        record[EXTENTS + i] = d.sizes[i];
        record[EXTENTS + d.n_dims + i] = d.strides[i];
    }
}

inline bool is_as_recorded(const Described& d, const int64_t* record, bool may_move) {
    if ((record[ADDRESS] != int64_t(d.data) && !may_move) || record[DEVICE] != device_of(d) ||
        record[DTYPE] != dtype_of(d) || record[RANK] != d.n_dims)
        return false;
    for (int32_t i = 0; i < d.n_dims; ++i)
        if (record[EXTENTS + i] != d.sizes[i] || record[EXTENTS + d.n_dims + i] != d.strides[i])
            return false;
    return true;
}

}  // namespace graddrop
