// The random bits of masks as an endless stream of bytes, for batteries of tests that read a pipe.
//
//     c++ -std=c++17 -O3 -o randomness bench/randomness.cpp
//     ./randomness draws | dieharder -g 200 -d 3
//
// The bits are those of the compiled kernel, 16 per entry, along one axis of the mask contract:
// neighbours on an axis are the inputs that differ least, which is where a weak generator shows.
// `bench/dieharder.sh` runs a battery over every series.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#include "../kernels/cpu/philox.h"

using namespace graddrop;

namespace {

// The bits of one tile's entries.
void tile_bits(uint64_t tile, const Stream& s, uint16_t* bits) {
    uint32_t words[BLOCK];
    for (int first = 0; first < TILE / 2; first += BLOCK) {
        draw_block_baseline(tile * (TILE / 8) + first / 4, s, words);
        for (int i = 0; i < BLOCK; ++i) {
            bits[first + i] = uint16_t(words[i]);
            bits[first + i + TILE / 2] = uint16_t(words[i] >> 16);
        }
    }
}

// The bits of element 0, with nothing kept from the entry before.
uint16_t first_entry(uint64_t seed, uint32_t stream, uint32_t draw) {
    const Stream s{uint32_t(seed), uint32_t(seed >> 32), stream, draw};
    return uint16_t(Drawer(s).u16(0));
}

// A series: its n-th run of TILE words. The lane is a coordinate that the series does not walk:
// tests that are given different lanes read different numbers.
using Series = std::function<void(uint32_t lane, uint64_t n, uint16_t* words)>;

Series one_by_one(uint16_t (*word)(uint32_t lane, uint64_t index)) {
    return [word](uint32_t lane, uint64_t n, uint16_t* words) {
        for (int i = 0; i < TILE; ++i) words[i] = word(lane, n * TILE + i);
    };
}

// Keep decisions at drop_prob 0.5, sixteen to a word.
void keep_words(uint32_t lane, uint64_t n, uint16_t* words) {
    uint16_t bits[TILE];
    for (int tile = 0; tile < 16; ++tile) {
        tile_bits(16 * n + tile, {0, 0, lane, 0}, bits);
        for (int i = 0; i < TILE; i += 16) {
            uint16_t word = 0;
            for (int bit = 0; bit < 16; ++bit) word |= uint16_t(bits[i + bit] >> 15 << bit);
            *words++ = word;
        }
    }
}

const std::map<std::string, Series> SERIES = {
    {"elements",
     [](uint32_t lane, uint64_t n, uint16_t* words) { tile_bits(n, {0, 0, lane, 0}, words); }},
    {"keep", keep_words},
    {"draws", one_by_one([](uint32_t lane, uint64_t i) { return first_entry(0, lane, i); })},
    {"streams", one_by_one([](uint32_t lane, uint64_t i) { return first_entry(0, i, lane); })},
    {"seeds", one_by_one([](uint32_t lane, uint64_t i) { return first_entry(i, lane, 0); })},
    // negative control: a linear congruential hash of the index
    {"control", one_by_one([](uint32_t lane, uint64_t i) {
         return uint16_t(uint32_t(1664525 * (i + lane) + 1013904223) >> 16);
     })},
};

}  // namespace

int main(int argc, char** argv) {
    const auto chosen = SERIES.find(argc > 1 ? argv[1] : "");
    if (chosen == SERIES.end()) {
        std::fprintf(stderr, "usage: %s SERIES [LANE], SERIES one of:", argv[0]);
        for (const auto& each : SERIES) std::fprintf(stderr, " %s", each.first.c_str());
        std::fprintf(stderr, "\n");
        return 2;
    }
    const auto lane = uint32_t(argc > 2 ? std::atol(argv[2]) : 0);
    uint16_t words[TILE];
    for (uint64_t n = 0;; ++n) {
        chosen->second(lane, n, words);
        if (std::fwrite(words, sizeof *words, TILE, stdout) != TILE) return 0;  // reader has left
    }
}
