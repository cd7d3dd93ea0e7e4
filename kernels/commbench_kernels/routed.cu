// Tokens to the ranks of their experts and back, between GPUs that reach each other's memory. See routed.py.
//
// In a dispatch every block counts the choices of all tokens for itself, and tells them the block of the same number on
// the other ranks: that is how ranks enter a call, and from these numbers each knows where its rows belong.
#include "flags.cuh"

#ifndef UNROLL
#define UNROLL 4  // pieces of 16 bytes that a thread holds at a time, to have as many loads under way
#endif

constexpr int SUMS = 4;  // of 16 bytes, that a thread makes at a time

constexpr int NONE = -1;  // in place of an expert: the token is masked, or has fewer choices than others
constexpr u32 BINS = 1024, HISTOGRAM = 2048, TILE = 1024, SOURCE_BINS = 4096;  // routed.py has the same

constexpr u32 OTHERS = RANKS > 1 ? RANKS - 1 : 1;  // something to divide by

struct Destination {
  char* out;
  char* scratch;
};

struct Dispatch {
  Destination peers[RANKS];
  const char* rows;     // [tokens, row_bytes], the own ones
  const int* experts;   // [tokens, top_k]
  const u32* weights;   // [tokens, top_k], of fp32; used where there is something to tell
  u64 row_bytes;
  u32 rank, tokens, top_k;
  u32 per_rank;   // experts of a rank
  u32 by_expert;  // whether there is a row for each choice, by expert; or for each token
  u32 tell;       // whether the output says of its rows whose they are
};

struct Combine {
  Destination peers[RANKS];
  const char* rows;      // what the own experts made, in the order of the dispatch's output
  const int* places;     // [RANKS, tokens, top_k]: which of them is that of each choice of a rank's tokens; NONE
  const float* weights;  // [RANKS, tokens, top_k]; null: none
  const u32* senders;    // [RANKS, tokens]: bit r is set where rank r has a part of the token
  u64 row_bytes;
  u32 rank, tokens, top_k;
  u32 pieces;  // of a block's tokens, of which one is added up while the next one is sent
  u32 slots;   // 1: parts go into slots always, without a handshake
};

union Words {  // shared by what is done one after the other
  u32 histogram[2][HISTOGRAM];
  struct {
    int key[TILE];
    u32 place[TILE];
  } tile;
};

struct Shared {
  Words words;
  u32 own[BINS + 1], total[BINS], base[SOURCE_BINS], rows[RANKS];
};

__device__ inline u32 lane() { return thread() % LANES; }
__device__ inline u32 group() { return thread() / LANES; }
__device__ inline u32 groups() { return threads() / LANES; }
// The tokens of a block are those from `token_of(block())` to `token_of(block() + 1)`, of each rank.
__device__ inline u32 token_of(u32 number, u32 tokens) { return (u32)((u64)number * tokens / blocks()); }

// Groups share entries out; where there are fewer entries than groups, several groups have parts of each.
struct Share {
  u32 parts, units;
  __device__ Share(u32 entries) : parts(entries && entries < groups() ? groups() / entries : 1), units(entries * parts) {}
};

// The lanes of a group copy a part of a row: `each(i, piece)` writes its piece i.
template <bool ARRIVED, class Each>
__device__ inline void copy_row(const char* row, u64 row_bytes, u32 part, u32 parts, Each each) {
  const uint4* from = (const uint4*)row;
  u32 count = (u32)(row_bytes / 16);
  for (u32 first = lane() + part * LANES * UNROLL; first < count; first += parts * LANES * UNROLL) {
    uint4 held[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
      if (first + u * LANES < count) held[u] = ARRIVED ? from[first + u * LANES] : load(from + first + u * LANES);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
      if (first + u * LANES < count) each(first + u * LANES, held[u]);
  }
}

// Which rows an item (a choice of a token) begins: those of its expert; or of its rank, where it is the first one there.
template <class At>
__device__ inline int key_of(At expert_at, u32 item, u32 top_k, u32 per_rank, bool by_expert) {
  int expert = expert_at(item);
  if (expert < 0 || (u32)expert >= RANKS * per_rank) return NONE;
  if (by_expert) return expert;
  int rank = expert / (int)per_rank;
  for (u32 earlier = item - item % top_k; earlier < item; ++earlier) {
    int other = expert_at(earlier);
    if (other >= 0 && (u32)other < RANKS * per_rank && other / (int)per_rank == rank) return NONE;
  }
  return rank;
}

// Count keys from 0 to `bins` of `items` items: of those before item `first`, and of all. Ends with a barrier, after
// which `each(bin, before, all)` has been called for each bin by one thread, the same one in all calls.
template <class Key, class Each>
__device__ inline void count(Shared& shared, Key key_at, u32 items, u32 first, u32 bins, Each each) {
  u32(&histogram)[2][HISTOGRAM] = shared.words.histogram;
  u32 copies = HISTOGRAM / bins < LANES ? HISTOGRAM / bins : LANES;  // so that lanes do not wait for each other
  for (u32 i = thread(); i < bins * copies; i += threads()) histogram[0][i] = histogram[1][i] = 0;
  block_barrier();
#pragma unroll 4
  for (u32 item = thread(); item < items; item += threads()) {
    int key = key_at(item);
    if (key != NONE) add_shared(&histogram[item >= first][key * copies + lane() % copies], 1);
  }
  block_barrier();
  for (u32 bin = thread(); bin < bins; bin += threads()) {
    u32 before = 0, after = 0;
    for (u32 copy = 0; copy < copies; ++copy) {
      before += histogram[0][bin * copies + copy];
      after += histogram[1][bin * copies + copy];
    }
    each(bin, before, before + after);
  }
  block_barrier();
}

// Give each item from `first` to `last`, no more than TILE, its place; `base` has the first free one of each key.
template <class Key>
__device__ inline void place(Shared& shared, Key key_at, u32 first, u32 last, u32* base) {
  int* keys = shared.words.tile.key;
  u32* places = shared.words.tile.place;
  for (u32 item = first + thread(); item < last; item += threads()) keys[item - first] = key_at(item);
  block_barrier();
  for (u32 i = thread(); i < last - first; i += threads()) {
    int key = keys[i];
    if (key == NONE) continue;
    u32 earlier = 0;
    for (u32 j = 0; j < i; ++j) earlier += keys[j] == key;
    places[i] = base[key] + earlier;
  }
  block_barrier();
  for (u32 i = thread(); i < last - first; i += threads())
    if (keys[i] != NONE) add_shared(base + keys[i], 1);
}

// What an output says of the row at `at`: weights, then source, token and experts, behind all rows. `width` lanes' work.
template <class Expert, class Weight>
__device__ inline void tell(char* behind, u32 rows, u32 at, u32 source, u32 token, u32 first, u32 width, Expert expert_at,
                            Weight weight_at) {
  u32* weights = (u32*)behind + (u64)at * width;
  int* numbers = (int*)behind + (u64)rows * width + (u64)at * (2 + width);
  for (u32 j = lane(); j < width; j += LANES) {
    weights[j] = weight_at(first + j);
    numbers[2 + j] = expert_at(first + j);
    if (j == 0) {
      numbers[0] = (int)source;
      numbers[1] = (int)token;
    }
  }
}

// How many rows the last dispatch has brought, for a host that wants to know: where no flags are, as it has no handshake.
__device__ inline u32* rows_come(char* scratch) { return entered(scratch); }

__device__ inline u32 packets_of(u32 bins) { return (bins + 1) / 2; }
__device__ inline Packet* counts_from(char* scratch, u32 rank, u32 bins) {
  return (Packet*)packets(scratch) + ((u64)block() * RANKS + rank) * packets_of(bins);
}
// [RANKS, tokens, top_k]: where the copies of a token belong that its rank sends once.
__device__ inline int* copies_from(char* scratch, u32 bins) {
  return (int*)((Packet*)packets(scratch) + (u64)blocks() * RANKS * packets_of(bins));
}

// All that this block has written for the others is there, and what they have written for it.
template <class Peers>
__device__ inline void leave(const Peers& peers, u32 rank, u32 value) {
  u32 word = block() * WIDTH;
  block_barrier();  // the stores of all threads come before the flags
  for (u32 p = thread(); p < RANKS; p += threads())
    if (p != rank) release(finished(peers[p].scratch) + word + rank, value);
}

template <class Peers>
__device__ inline void arrive(const Peers& peers, u32 rank, u32 value) {
  u32 word = block() * WIDTH;
  for (u32 p = thread(); p < RANKS; p += threads())
    if (p != rank)
      while ((int)(acquire(finished(peers[rank].scratch) + word + p) - value) < 0) idle();
  block_barrier();
}

KERNEL void dispatch(const __grid_constant__ Dispatch call) {
  SHARED(Shared, shared);
  char* own = call.peers[call.rank].scratch;
  u32 number = calls(own)[block()] + 1;
  u32 me = call.rank, k = call.top_k, per_rank = call.per_rank, items = call.tokens * k;
  bool by_expert = call.by_expert;
  u32 bins = by_expert ? RANKS * per_rank : RANKS, of_rank = by_expert ? per_rank : 1;
  u32 first = token_of(block(), call.tokens), last = token_of(block() + 1, call.tokens);
  auto expert_at = [&](u32 item) { return load(call.experts + item); };
  auto weight_at = [&](u32 item) { return load(call.weights + item); };
  auto key_at = [&](u32 item) { return key_of(expert_at, item, k, per_rank, by_expert); };

  count(shared, key_at, items, first * k, bins, [&](u32 bin, u32 before, u32 all) {
    shared.own[bin] = all;
    shared.base[bin] = before;
    if (bin + 1 == bins) shared.own[bins] = 0;  // packets are of two
  });
  for (u32 i = thread(); i < packets_of(bins) * (RANKS - 1); i += threads()) {
    u32 pair = i % packets_of(bins), peer = turn(me, 1 + i / packets_of(bins));
    put(counts_from(call.peers[peer].scratch, me, bins) + pair,
        (u64)shared.own[2 * pair + 1] << 32 | shared.own[2 * pair], number);
  }
  for (u32 pair = thread(); pair < packets_of(bins); pair += threads()) {
    u32 total[2] = {shared.own[2 * pair], shared.own[2 * pair + 1]}, before[2] = {0, 0};
    for (u32 p = 1; p < RANKS; ++p) {
      u32 source = turn(me, p);
      const Packet* slot = counts_from(own, source, bins) + pair;
      Packet packet = get(slot);
      while (packet.first != number || packet.second != number) {
        idle();
        packet = get(slot);
      }
      u32 counts[2] = {packet.low, packet.high};
      for (u32 i = 0; i < 2; ++i) {
        total[i] += counts[i];
        if (source < me) before[i] += counts[i];
      }
    }
    for (u32 i = 0; i < 2 && 2 * pair + i < bins; ++i) {
      shared.total[2 * pair + i] = total[i];
      shared.base[2 * pair + i] += before[i];
    }
  }
  block_barrier();
  for (u32 bin = thread(); bin < bins; bin += threads()) {
    u32 lower = 0;
    for (u32 other = bin - bin % of_rank; other < bin; ++other) lower += shared.total[other];
    shared.base[bin] += lower;
    if (bin % of_rank == of_rank - 1) shared.rows[bin / of_rank] = lower + shared.total[bin];
  }
  block_barrier();

  const int* keys = shared.words.tile.key;
  const u32* places = shared.words.tile.place;
  bool copied = by_expert && k > 1;  // a row that comes once may have several places
  for (u32 token = first, until; token < last; token = until) {
    until = token + TILE / k < last ? token + TILE / k : last;
    place(shared, key_at, token * k, until * k, shared.base);
    Share share((until - token) * RANKS);
    for (u32 unit = group(); unit < share.units; unit += groups()) {
      u32 entry = unit / share.parts, part = unit % share.parts;
      u32 t = token + entry / RANKS, peer = turn(me, 1 + entry % RANKS), items_at = (t - token) * k, chosen = k;
      const Destination& to = call.peers[peer];
      auto here = [&](u32 i) {
        int key = keys[items_at + i];
        return key != NONE && (u32)key / of_rank == peer;
      };
      for (u32 i = k; i-- > 0;)
        if (here(i)) chosen = i;
      if (copied && peer != me && part == 0)
        for (u32 i = lane(); i < k; i += LANES)
          copies_from(to.scratch, bins)[((u64)me * call.tokens + t) * k + i] = here(i) ? (int)places[items_at + i] : NONE;
      if (chosen == k) continue;
      const char* row = call.rows + t * call.row_bytes;
      if (copied && peer == me)
        copy_row<false>(row, call.row_bytes, part, share.parts, [&](u32 i, uint4 piece) {
          for (u32 j = chosen; j < k; ++j)
            if (here(j)) ((uint4*)(to.out + places[items_at + j] * call.row_bytes))[i] = piece;
        });
      else {
        uint4* target = (uint4*)(to.out + places[items_at + chosen] * call.row_bytes);
        copy_row<false>(row, call.row_bytes, part, share.parts, [&](u32 i, uint4 piece) { target[i] = piece; });
      }
      if (!call.tell || part) continue;
      char* behind = to.out + shared.rows[peer] * call.row_bytes;
      for (u32 i = chosen; i < k; ++i)
        if (here(i))
          tell(behind, shared.rows[peer], places[items_at + i], me, t, by_expert ? t * k + i : t * k, by_expert ? 1 : k,
               expert_at, weight_at);
    }
    block_barrier();  // before the next tile takes their place
  }
  if (block() == 0 && thread() == 0) *rows_come(own) = shared.rows[me];
  leave(call.peers, me, number);
  arrive(call.peers, me, number);
  if (copied) {
    Share share((last - first) * (RANKS - 1));
    for (u32 unit = group(); unit < share.units; unit += groups()) {
      u32 entry = unit / share.parts, source = turn(me, 1 + entry % OTHERS), t = first + entry / OTHERS;
      const int* to = copies_from(own, bins) + ((u64)source * call.tokens + t) * k;
      char* out = call.peers[me].out;
      u32 chosen = 0, more;
      while (chosen < k && to[chosen] == NONE) ++chosen;
      for (more = chosen + 1; more < k && to[more] == NONE;) ++more;
      if (more >= k) continue;
      copy_row<true>(out + to[chosen] * call.row_bytes, call.row_bytes, unit % share.parts, share.parts,
                     [&](u32 i, uint4 piece) {
                       for (u32 j = more; j < k; ++j)
                         if (to[j] != NONE) ((uint4*)(out + to[j] * call.row_bytes))[i] = piece;
                     });
    }
  }
  block_barrier();
  if (thread() == 0) calls(own)[block()] = number;
}

// Slots: no handshake. Two sets of them take turns, as those of packets do: block b writes those of call n when every
// rank's block b has ended call n - 1, and was therefore done with call n - 2, the last that used them.
//
// Every block is told the choices of all tokens of all ranks, and so knows where rows belong; it waits for its own rows
// alone.
struct Choice {
  int expert;
  u32 weight;
};
__device__ inline Choice* choices_from(char* scratch, u32 set, u32 rank, u32 items) {
  return (Choice*)packets(scratch) + (((u64)set * blocks() + block()) * RANKS + rank) * items;
}
__device__ inline char* rows_from(char* scratch, u32 set, u32 rank, u32 items, u32 tokens, u64 row_bytes) {
  u64 choices = ((u64)2 * blocks() * RANKS * items * sizeof(Choice) + 15) / 16 * 16;
  return packets(scratch) + choices + ((u64)set * RANKS + rank) * tokens * row_bytes;
}

KERNEL void dispatch_slots(const __grid_constant__ Dispatch call) {
  SHARED(Shared, shared);
  char* own = call.peers[call.rank].scratch;
  u32 number = calls(own)[block()] + 1, set = number & 1;
  u32 me = call.rank, k = call.top_k, per_rank = call.per_rank, items = call.tokens * k;
  bool by_expert = call.by_expert;
  u32 bins = by_expert ? per_rank : 1;
  u32 first = token_of(block(), call.tokens), last = token_of(block() + 1, call.tokens);

  for (u32 i = thread(); i < items * (RANKS - 1); i += threads()) {
    u32 item = i % items, peer = turn(me, 1 + i / items);
    choices_from(call.peers[peer].scratch, set, me, items)[item] = {
        load(call.experts + item), call.tell ? load(call.weights + item) : 0};
  }
  Share sending((last - first) * (RANKS - 1));
  for (u32 unit = group(); unit < sending.units; unit += groups()) {
    u32 entry = unit / sending.parts, t = first + entry / OTHERS, peer = turn(me, 1 + entry % OTHERS);
    bool goes = false;
    for (u32 i = 0; i < k; ++i) {
      int expert = load(call.experts + t * k + i);
      goes |= expert >= 0 && (u32)expert / per_rank == peer;
    }
    if (!goes) continue;
    uint4* slot = (uint4*)(rows_from(call.peers[peer].scratch, set, me, items, call.tokens, call.row_bytes) +
                           t * call.row_bytes);
    copy_row<false>(call.rows + t * call.row_bytes, call.row_bytes, unit % sending.parts, sending.parts,
                    [&](u32 i, uint4 piece) { slot[i] = piece; });
  }
  leave(call.peers, me, number);
  arrive(call.peers, me, number);

  for (u32 bin = thread(); bin < bins; bin += threads()) shared.total[bin] = 0;
  auto expert_of = [&](u32 source, u32 item) {
    return source == me ? load(call.experts + item) : choices_from(own, set, source, items)[item].expert;
  };
  auto bin_of = [&](u32 source, u32 item) {
    int key = key_of([&](u32 i) { return expert_of(source, i); }, item, k, per_rank, by_expert);
    int bin = key - (int)(by_expert ? me * per_rank : me);
    return key != NONE && bin >= 0 && bin < (int)bins ? bin : NONE;
  };
  for (u32 source = 0; source < RANKS; ++source)
    count(shared, [&](u32 item) { return bin_of(source, item); }, items, first * k, bins,
          [&](u32 bin, u32 before, u32 all) {
            shared.base[source * bins + bin] = shared.total[bin] + before;
            shared.total[bin] += all;
          });
  for (u32 bin = thread(); bin < bins; bin += threads()) {
    u32 lower = 0;
    for (u32 other = 0; other < bin; ++other) lower += shared.total[other];
    for (u32 source = 0; source < RANKS; ++source) shared.base[source * bins + bin] += lower;
    if (bin + 1 == bins) shared.rows[me] = lower + shared.total[bin];
  }
  block_barrier();

  if (block() == 0 && thread() == 0) *rows_come(own) = shared.rows[me];
  char* out = call.peers[me].out;
  char* behind = out + shared.rows[me] * call.row_bytes;
  const int* keys = shared.words.tile.key;
  const u32* places = shared.words.tile.place;
  for (u32 source = 0; source < RANKS; ++source)
    for (u32 token = first, until; token < last; token = until) {
      until = token + TILE / k < last ? token + TILE / k : last;
      place(shared, [&](u32 item) { return bin_of(source, item); }, token * k, until * k, shared.base + source * bins);
      Share share(until - token);
      for (u32 unit = group(); unit < share.units; unit += groups()) {
        u32 t = token + unit / share.parts, part = unit % share.parts, items_at = (t - token) * k, chosen = 0;
        while (chosen < k && keys[items_at + chosen] == NONE) ++chosen;
        if (chosen == k) continue;
        auto write = [&](u32 i, uint4 piece) {
          for (u32 j = chosen; j < k; ++j)
            if (keys[items_at + j] != NONE) ((uint4*)(out + places[items_at + j] * call.row_bytes))[i] = piece;
        };
        if (source == me)
          copy_row<false>(call.rows + t * call.row_bytes, call.row_bytes, part, share.parts, write);
        else
          copy_row<true>(rows_from(own, set, source, items, call.tokens, call.row_bytes) + t * call.row_bytes,
                         call.row_bytes, part, share.parts, write);
        if (!call.tell || part) continue;
        auto expert_at = [&](u32 item) { return expert_of(source, item); };
        auto weight_at = [&](u32 item) {
          return source == me ? load(call.weights + item) : choices_from(own, set, source, items)[item].weight;
        };
        for (u32 i = chosen; i < k; ++i)
          if (keys[items_at + i] != NONE)
            tell(behind, shared.rows[me], places[items_at + i], source, t, by_expert ? t * k + i : t * k,
                 by_expert ? 1 : k, expert_at, weight_at);
      }
      block_barrier();
    }
  if (thread() == 0) calls(own)[block()] = number;
}

// Numbers of 16 bytes as fp32, and back.
template <class Half>
struct Halves {
  float values[8];
  __device__ void clear() {
    for (int i = 0; i < 8; ++i) values[i] = 0;
  }
  __device__ void add(uint4 piece, float weight) {
    u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] += weight * Half::low(words[i]);
      values[2 * i + 1] += weight * Half::high(words[i]);
    }
  }
  __device__ uint4 rounded() const {
    return {Half::pack(values[0], values[1]), Half::pack(values[2], values[3]), Half::pack(values[4], values[5]),
            Half::pack(values[6], values[7])};
  }
};

struct Singles {
  float values[4];
  __device__ void clear() {
    for (int i = 0; i < 4; ++i) values[i] = 0;
  }
  __device__ void add(uint4 piece, float weight) {
    u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] += weight * as_float(words[i]);
  }
  __device__ uint4 rounded() const {
    return {as_word(values[0]), as_word(values[1]), as_word(values[2]), as_word(values[3])};
  }
};

// Parts of tokens in slots: [sets, RANKS, tokens, row_bytes].
__device__ inline char* parts_from(char* scratch, u32 set, u32 rank, const Combine& call) {
  return packets(scratch) + ((u64)set * RANKS + rank) * call.tokens * call.row_bytes;
}

// The lanes of a group add up, in a part of the row, what the own experts made of token `t` of rank `source`, and `more`
// of other ranks, one bit each, and write the sum.
template <class Numbers>
__device__ inline void add_up(const Combine& call, u32 source, u32 t, u32 set, u32 more, char* to, u32 part, u32 parts) {
  u32 count = (u32)(call.row_bytes / 16);
  u64 items_at = ((u64)source * call.tokens + t) * call.top_k;
  for (u32 first = lane() + part * LANES * SUMS; first < count; first += parts * LANES * SUMS) {
    Numbers sums[SUMS];
#pragma unroll
    for (int u = 0; u < SUMS; ++u) sums[u].clear();
    for (u32 k = 0; k < call.top_k; ++k) {
      int place = load(call.places + items_at + k);
      if (place == NONE) continue;
      float weight = call.weights ? load(call.weights + items_at + k) : 1;
      const uint4* row = (const uint4*)(call.rows + (u64)place * call.row_bytes);
      uint4 held[SUMS];
#pragma unroll
      for (int u = 0; u < SUMS; ++u)
        if (first + u * LANES < count) held[u] = load(row + first + u * LANES);
#pragma unroll
      for (int u = 0; u < SUMS; ++u)
        if (first + u * LANES < count) sums[u].add(held[u], weight);
    }
    for (u32 rank = 0; more >> rank; ++rank) {
      if (!(more >> rank & 1)) continue;
      const uint4* slot = (const uint4*)(parts_from(call.peers[call.rank].scratch, set, rank, call) + t * call.row_bytes);
#pragma unroll
      for (int u = 0; u < SUMS; ++u)
        if (first + u * LANES < count) sums[u].add(slot[first + u * LANES], 1);
    }
#pragma unroll
    for (int u = 0; u < SUMS; ++u)
      if (first + u * LANES < count) ((uint4*)to)[first + u * LANES] = sums[u].rounded();
  }
}

// Each rank adds up what its experts made of a token, and stores the sum at the token's rank: in the output, where it
// is the only one; else in a slot. The token's rank adds up the slots.
template <class Numbers>
__device__ void combine(const Combine& call) {
  char* own = call.peers[call.rank].scratch;
  u32 number = calls(own)[block()] + 1, me = call.rank, set = call.slots ? number & 1 : 0;
  u32 first = token_of(block(), call.tokens), last = token_of(block() + 1, call.tokens), word = block() * WIDTH;
  auto from = [&](u32 piece) { return first + (u32)((u64)piece * (last - first) / call.pieces); };
  auto alone = [&](u32 senders) { return (senders & (senders - 1)) == 0; };
  auto value = [&](u32 piece) { return number * call.pieces + piece + 1; };

  if (!call.slots)
    for (u32 p = thread(); p < RANKS; p += threads()) {
      if (p == me) continue;
      release(entered(call.peers[p].scratch) + word + me, number);
      while ((int)(acquire(entered(own) + word + p) - number) < 0) idle();
    }
  block_barrier();  // all threads have read the counter, too
  auto send = [&](u32 piece) {
    u32 start = from(piece);
    Share share((from(piece + 1) - start) * RANKS);
    for (u32 unit = group(); unit < share.units; unit += groups()) {
      u32 entry = unit / share.parts, t = start + entry / RANKS, peer = turn(me, 1 + entry % RANKS);
      u32 senders = load(call.senders + (u64)peer * call.tokens + t);
      bool direct = alone(senders) && (peer == me || !call.slots);
      if (!(senders >> me & 1) || (peer == me && !direct)) continue;
      char* to = direct ? call.peers[peer].out : parts_from(call.peers[peer].scratch, set, me, call);
      add_up<Numbers>(call, peer, t, set, 0, to + t * call.row_bytes, unit % share.parts, share.parts);
    }
    leave(call.peers, me, value(piece));
  };
  auto receive = [&](u32 piece) {
    arrive(call.peers, me, value(piece));
    Share share(from(piece + 1) - from(piece));
    for (u32 unit = group(); unit < share.units; unit += groups()) {
      u32 t = from(piece) + unit / share.parts;
      u32 senders = load(call.senders + (u64)me * call.tokens + t);
      if (senders && alone(senders) && (!call.slots || senders >> me & 1)) continue;
      add_up<Numbers>(call, me, t, set, senders & ~(1u << me), call.peers[me].out + t * call.row_bytes,
                      unit % share.parts, share.parts);
    }
  };
  send(0);
  for (u32 piece = 1; piece < call.pieces; ++piece) {
    send(piece);
    receive(piece - 1);
  }
  receive(call.pieces - 1);
  block_barrier();
  if (thread() == 0) calls(own)[block()] = number;
}

KERNEL void combine_bf16(const __grid_constant__ Combine call) { combine<Halves<Bf16>>(call); }
KERNEL void combine_fp16(const __grid_constant__ Combine call) { combine<Halves<Fp16>>(call); }
KERNEL void combine_fp32(const __grid_constant__ Combine call) { combine<Singles>(call); }
