#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// The joint score: norm of the sum over the group's heads of (attention column x projected value). With u_h the value
// projected by head h's part of the group's common factor, its square is the sum over rows k of the factor of
// u[k]^T G u[k], G the Gram matrix of the attention columns. One workgroup per tile of 64 candidates. A tile has as many
// rows of the factor for each head of the group; the factor is upper triangular, so that heads before the one in whose
// columns a row's diagonal stands have zeros there.
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/value.glsl"

const uint FACTOR_DIM = GROUP * HEAD_DIM;
// Of up to 8 * TILE_BLOCKS heads.
const uint ROWS_THAT_FIT = GROUP <= TILE_BLOCKS       ? 16 * (TILE_BLOCKS / GROUP)
                           : GROUP <= 2 * TILE_BLOCKS ? 8
                           : GROUP <= 4 * TILE_BLOCKS ? 4
                                                      : 2;
const uint PADDED_DIM = (HEAD_DIM + 7) / 8 * 8;
const uint HEAD_FACTOR_ROWS = ROWS_THAT_FIT < PADDED_DIM ? ROWS_THAT_FIT : PADDED_DIM; // in a tile
const uint ROW_BLOCKS = (GROUP * HEAD_FACTOR_ROWS + 15) / 16;
#if TILE_BLOCKS > 2 // else leaving out the zeros takes more registers than there are
#define ROW_MASK
#endif
#define ROWS_ARE_WHOLE (HEAD_DIM % HEAD_FACTOR_ROWS == 0)

#include "../evict/tile.glsl"

uint diagonal_head, first_factor_row; // the tile's factor rows: from this one on, of those with this head's diagonal

uint start_a(uint row) {
  const uint group_head = min(row / HEAD_FACTOR_ROWS, GROUP - 1);
  const uint factor_row = first_factor_row + row % HEAD_FACTOR_ROWS;
  if (factor_row >= HEAD_DIM) return NOWHERE;
  return ((head * FACTOR_DIM + diagonal_head * HEAD_DIM + factor_row) * FACTOR_DIM + group_head * HEAD_DIM) / 4;
}

#ifdef ROW_MASK
uint row_mask(uint k4) {
  if (TILE_BLOCKS < 8 && GROUP == 1) return ALL_ROWS; // few zeros, many registers
  uint mask = 0;
  for (uint i = 0; i < ROW_BLOCKS; i++) {
    const uint last = (16 * i + 15) / HEAD_FACTOR_ROWS; // of the block's heads
    const uint row = first_factor_row + max(16 * i, last * HEAD_FACTOR_ROWS) - last * HEAD_FACTOR_ROWS;
    if (last > diagonal_head || (last == diagonal_head && 4 * (k4 + TILE_DEPTH) > row))
      mask |= 1u << i;
  }
  return mask;
}
#endif

// The products of 16 columns, kept where the operands were.
float projected(uint row, uint column) {
  const uint at = row * 16 + column;
  return tile[at >> 2][at & 3u];
}

// Of the invocation's column among the 16, over its share of the factor rows.
float quadratic_form(uint gram) {
  const uint column = gl_LocalInvocationIndex & 15u;
  float total = 0.0;
  uint pair = 0;
  for (uint h = 0; h < GROUP; h++)
    for (uint other = 0; other <= h; other++, pair++) {
      float sum = 0.0;
      ROLLED for (uint first = 0; first < HEAD_FACTOR_ROWS; first += LOCAL_SIZE / 16) {
        const uint k = first + (gl_LocalInvocationIndex >> 4);
        const float both = projected(h * HEAD_FACTOR_ROWS + k, column) * projected(other * HEAD_FACTOR_ROWS + k, column);
        sum += k < HEAD_FACTOR_ROWS ? both : 0.0;
      }
      total += (other < h ? 2.0 : 1.0) * work[gram + pair * TILE_ENTRIES + column] * sum;
    }
  return total;
}

#if TILE_BLOCKS > 2
float totals[4];
#define TOTAL(p) totals[p]
#else
shared float totals[4 * LOCAL_SIZE]; // where they take no registers of products
#define TOTAL(p) totals[p * LOCAL_SIZE + gl_LocalInvocationIndex]
#endif

#define PUT(p, i)                                                                                                      \
  if (i < ROW_BLOCKS) {                                                                                                \
    part_word(ROW(i) * 16 + TILE_X, product[i][2 * p]);                                                                \
    part_word(ROW(i) * 16 + TILE_X + 8, product[i][2 * p + 1]);                                                        \
  }
#define ADD_PIECE(p)                                                                                                   \
  barrier();                                                                                                           \
  EACH_BLOCK(PUT, p)                                                                                                   \
  barrier();                                                                                                           \
  TOTAL(p) += quadratic_form(gram + 16 * p);
#define PUT_PIECE(p)                                                                                                   \
  if (piece == p) {                                                                                                    \
    EACH_BLOCK(PUT, p)                                                                                                 \
  }
#define CLEAR_TOTAL(p) TOTAL(p) = 0.0;
#define STORE_TOTAL(p) part_word((gl_LocalInvocationIndex >> 4) * 64 + 16 * p + (gl_LocalInvocationIndex & 15u), TOTAL(p));

// Of the product's columns, 16 at a time. Written out, they share addresses, in registers that few devices have.
void add_pieces(uint gram) {
#if TILE_BLOCKS > 2
  REPEAT_4(ADD_PIECE)
#else
  ROLLED for (uint piece = 0; piece < 4; piece++) {
    barrier();
    REPEAT_4(PUT_PIECE)
    barrier();
    TOTAL(piece) += quadratic_form(gram + 16 * piece);
  }
#endif
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  if (!find_tile(push.first_item + workgroup_index())) return;
  const uint gram = push.attention + strip_tile * (GROUP * (GROUP + 1) / 2) * TILE_ENTRIES;
  REPEAT_4(CLEAR_TOTAL)
  // Written out, two turns would share what they load of the Gram matrix, in registers that few devices have.
  for (diagonal_head = 0; diagonal_head < GROUP; diagonal_head++)
    ROLLED for (first_factor_row = 0; first_factor_row < HEAD_DIM; first_factor_row += HEAD_FACTOR_ROWS) {
      tile_product(diagonal_head + 1 < GROUP ? 0 : first_factor_row / 16 * 4, HEAD_DIM / 4);
      add_pieces(gram);
    }
  barrier();
  REPEAT_4(STORE_TOTAL)
  barrier();
  if (gl_LocalInvocationIndex >= TILE_COLUMNS) return;
  float total = 0.0;
  for (uint part = 0; part < LOCAL_SIZE / 16; part++) {
    const uint at = part * 64 + gl_LocalInvocationIndex;
    total += tile[at >> 2][at & 3u];
  }
  if (is_finite(total)) total = max(total, 0.0); // rounding may leave a zero slightly below
  write_score(gl_LocalInvocationIndex, sqrt(total));
}
