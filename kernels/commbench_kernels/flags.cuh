// What ranks tell each other in their scratch, and in which order they turn to each other.
//
// Block b of a rank works with block b of every other rank, and waits for nothing else: ranks may start in any order,
// blocks may run one after the other, and no block waits for one of its own rank. What tells one call from the next is
// a number, counted by each block in its own rank's memory, so that a call captured in a graph can be replayed.
#pragma once

#include <system.cuh>

#ifndef RANKS
#error "RANKS: how many ranks there are"
#endif

// The scratch of a rank, zeros at first (scratch.py has the same): the number of the last call of each block; which
// call each block of each rank has entered; which it has left; packets.
constexpr u32 BLOCKS = 128;
constexpr u32 WIDTH = (RANKS + 3) / 4 * 4;  // words of one block's flags
__device__ inline u32* calls(char* scratch) { return (u32*)scratch; }
__device__ inline u32* entered(char* scratch) { return (u32*)scratch + BLOCKS; }
__device__ inline u32* finished(char* scratch) { return (u32*)scratch + BLOCKS + BLOCKS * WIDTH; }
__device__ inline char* packets(char* scratch) { return scratch + sizeof(u32) * (BLOCKS + 2 * BLOCKS * WIDTH); }

// Peers in the order in which rank `rank` turns to them, itself last: all ranks start with different ones.
__device__ inline u32 turn(u32 rank, u32 k) { return rank + k < RANKS ? rank + k : rank + k - RANKS; }
