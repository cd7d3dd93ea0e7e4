// One-sided all-to-all between GPUs that reach each other's memory. See one_sided.py for how calls are made.
#include "flags.cuh"

struct Peer {
  const char* source;  // what goes there: `sent` bytes of the own input
  char* target;        // where to: in the peer's output
  char* arrival;       // where what comes from there belongs: `received` bytes of the own output
  char* scratch;       // the peer's
  u64 sent, received;
};

struct Call {
  Peer peers[RANKS];  // the own rank as well: its block is copied
  u64 slot_bytes;     // of the packets from one block of one rank
  u32 rank;
};

// All ranks have come this far on their streams. One block.
KERNEL void handshake(const __grid_constant__ Call call) {
  char* own = call.peers[call.rank].scratch;
  u32 number = *calls(own) + 1;
  block_barrier();  // all threads have read the counter
  for (u32 p = thread(); p < RANKS; p += threads()) {
    if (p == call.rank) continue;
    release(entered(call.peers[p].scratch) + call.rank, number);
    while ((int)(acquire(entered(own) + p) - number) < 0) idle();
  }
  if (thread() == 0) *calls(own) = number;
}

// Elements of one tile: a thread holds UNROLL of them at a time, to have as many loads under way.
constexpr int UNROLL = 4;

template <class V>
struct Tile {
  V held[UNROLL];

  __device__ void read(const Peer& peer, u64 first) {
    const V* source = (const V*)peer.source;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      u64 i = first + u * threads();
      if (i < peer.sent / sizeof(V)) held[u] = load(source + i);
    }
  }

  __device__ void write(const Peer& peer, u64 first) {
    V* target = (V*)peer.target;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      u64 i = first + u * threads();
      if (i < peer.sent / sizeof(V)) target[i] = held[u];
    }
  }
};

// Blocks of threads `part`, `part` + 1, ... of `parts` copy one peer's message. The first tile has been read.
template <class V>
__device__ void move(const Peer& peer, u64 part, u64 parts, Tile<V>& tile) {
  u64 tile_size = (u64)threads() * UNROLL, end = peer.sent / sizeof(V);
  for (u64 first = part * tile_size; first < end;) {
    tile.write(peer, first + thread());
    first += parts * tile_size;
    tile.read(peer, first + thread());
  }
  if (part == 0)  // what is left of a message that is no whole number of elements
    for (u64 i = end * sizeof(V) + thread(); i < peer.sent; i += threads()) peer.target[i] = peer.source[i];
}

// Write every message where it belongs. A block of threads serves one peer: the k-th in its rank's order, itself the
// last. No peer is written to before it has entered the call, for until then it may still read its output; and the call
// is over when what comes from the rank of which this one is the k-th peer has arrived. So a block has two to talk to,
// and only its own number among their blocks. There are as many blocks for each peer.
template <class V>
__device__ void store(const Call& call) {
  const Peer* peers = call.peers;
  char* own = peers[call.rank].scratch;
  u32* counter = calls(own) + block();
  u32 number = *counter + 1, word = block() * WIDTH;
  u32 k = 1 + block() % RANKS, to = turn(call.rank, k), from = turn(call.rank, RANKS - k);
  u64 part = block() / RANKS, parts = blocks() / RANKS;

  Tile<V> tile;
  tile.read(peers[to], part * threads() * UNROLL + thread());  // while the others enter
  block_barrier();                                             // all threads have read the counter
  if (k < RANKS && thread() == 0) {
    release(entered(peers[from].scratch) + word, number);
    while ((int)(acquire(entered(own) + word) - number) < 0) idle();
  }
  block_barrier();
  move(peers[to], part, parts, tile);
  block_barrier();  // the stores of all threads come before the flag
  if (thread() != 0) return;
  if (k < RANKS) {
    release(finished(peers[to].scratch) + word, number);
    while ((int)(acquire(finished(own) + word) - number) < 0) idle();
  }
  *counter = number;
}

KERNEL void store_16(const __grid_constant__ Call call) { store<uint4>(call); }
KERNEL void store_4(const __grid_constant__ Call call) { store<u32>(call); }
KERNEL void store_1(const __grid_constant__ Call call) { store<unsigned char>(call); }

// The own message alone, while copy engines move the others.
template <class V>
__device__ void copy_own(const Call& call) {
  Tile<V> tile;
  const Peer& self = call.peers[call.rank];
  tile.read(self, (u64)block() * threads() * UNROLL + thread());
  move(self, block(), blocks(), tile);
}

KERNEL void own_16(const __grid_constant__ Call call) { copy_own<uint4>(call); }
KERNEL void own_4(const __grid_constant__ Call call) { copy_own<u32>(call); }
KERNEL void own_1(const __grid_constant__ Call call) { copy_own<unsigned char>(call); }

// Eight bytes from `at`, of which `left` are there. WHOLE: addresses are multiples of eight.
template <bool WHOLE>
__device__ inline u64 read8(const char* at, u64 left) {
  if (WHOLE && left >= 8) return load((const u64*)at);
  u64 data = 0;
  for (u32 i = 0; i < 8 && i < left; ++i) data |= (u64)load((const unsigned char*)at + i) << (8 * i);
  return data;
}

template <bool WHOLE>
__device__ inline void write8(char* at, u64 data, u64 left) {
  if (WHOLE && left >= 8) {
    *(u64*)at = data;
    return;
  }
  for (u32 i = 0; i < 8 && i < left; ++i) at[i] = (char)(data >> (8 * i));
}

__device__ inline u64 words(u64 nbytes) { return (nbytes + 7) / 8; }

// Small blocks: no handshake. Data travel in packets into the peer's scratch and are unpacked there.
//
// Two sets of slots take turns. Block b writes those of call n when it has got the packets of call n - 1 from every
// rank. Their senders were then in call n - 1, so they had finished call n - 2, the last that used the same slots. This
// is why a block sends at least one packet to each rank, however little there is to say.
template <bool WHOLE>
__device__ void send_packets(const Call& call) {
  char* own = call.peers[call.rank].scratch;
  u32* counter = calls(own) + block();
  u32 number = *counter + 1;
  u64 set = (u64)block() * 2 + (number & 1), first = (u64)block() * threads() + thread(), stride = (u64)blocks() * threads();

  for (u32 k = 1; k < RANKS; ++k) {
    const Peer& peer = call.peers[turn(call.rank, k)];
    Packet* slot = (Packet*)(packets(peer.scratch) + (set * RANKS + call.rank) * call.slot_bytes) + thread();
    u64 i = first;
    do {
      u64 data = i * 8 < peer.sent ? read8<WHOLE>(peer.source + i * 8, peer.sent - i * 8) : 0;
      if (i < words(peer.sent) || (thread() == 0 && i == first)) put(slot, data, number);
      slot += threads();
      i += stride;
    } while (i < words(peer.sent));
  }
  const Peer& self = call.peers[call.rank];
  for (u64 i = first; i < words(self.sent); i += stride)
    write8<WHOLE>(self.target + i * 8, read8<WHOLE>(self.source + i * 8, self.sent - i * 8), self.sent - i * 8);
  for (u32 k = 1; k < RANKS; ++k) {
    u32 source = turn(call.rank, k);
    const Peer& peer = call.peers[source];
    const Packet* slot = (const Packet*)(packets(own) + (set * RANKS + source) * call.slot_bytes) + thread();
    u64 i = first;
    do {
      if (i < words(peer.received) || (thread() == 0 && i == first)) {
        Packet packet = get(slot);
        while (packet.first != number || packet.second != number) {
          idle();
          packet = get(slot);
        }
        if (i < words(peer.received))
          write8<WHOLE>(peer.arrival + i * 8, (u64)packet.high << 32 | packet.low, peer.received - i * 8);
      }
      slot += threads();
      i += stride;
    } while (i < words(peer.received));
  }
  block_barrier();  // all threads have read the counter, and got their packets
  if (thread() == 0) *counter = number;
}

KERNEL void packets_8(const __grid_constant__ Call call) { send_packets<true>(call); }
KERNEL void packets_1(const __grid_constant__ Call call) { send_packets<false>(call); }
