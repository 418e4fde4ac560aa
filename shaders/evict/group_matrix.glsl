// What the scoring kernels on cooperative matrices share: 32 cache entries a step, and for each of up to four query heads of
// a KV head a matrix operand that stays in registers. The subgroups of a head divide the operand's rows and the step's
// entries. The includer has a push with n_groups, heads, first_head, end_head, first_item, end_item, rows and prepared.
#ifndef GROUP_MATRIX_GLSL
#define GROUP_MATRIX_GLSL

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 5) const uint SIZE = 16;        // of a matrix
layout(constant_id = 6) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 7, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 8) const uint N_INVOCATIONS = 128; // the same
layout(constant_id = 9) const uint PARTS = 1; // 1, 2 or 4, that a head's operand is divided into
layout(constant_id = 10) const uint HEADS_AT_ONCE = 4;

#include "../evict/matrix.glsl"

#define STEP_ENTRIES 32
#define TILE_STEPS   (TILE_ENTRIES / STEP_ENTRIES)

const uint HEAD_TILES = (GROUP + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
const uint TILE_HEADS = (GROUP + HEAD_TILES - 1) / HEAD_TILES;
const uint N_SUBGROUPS = N_INVOCATIONS / SUBGROUP_SIZE;
const uint ENTRY_PARTS = N_SUBGROUPS / TILE_HEADS / PARTS;
const uint DEPTH_MATRICES = HEAD_DIM / SIZE;
const uint COLUMN_MATRICES = STEP_ENTRIES / SIZE / ENTRY_PARTS;

layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer WorkWords { uint work_words[]; };
layout(set = 0, binding = 2) readonly buffer WorkHalves { f16vec4 work_halves[]; };

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

#define HEAD_MATRIX  coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define ENTRY_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX   coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>

uint head, n_entries, next_item, share_end;
uint group_head;       // of this subgroup, in the group; that of another subgroup where there is none left
uint part, entry_part; // of this subgroup: of its head's operand, and of the step's entries

#include "../evict/items.glsl"
#include "../evict/step_matrix.glsl"

// The dispatch's items are shared out evenly, each share to so many workgroups: this one's begins with next_item.
void find_share(uint n_workgroups) {
  const uint n_shares = push.n_groups / n_workgroups, share = workgroup_index() / n_workgroups;
  const uint n_items = push.end_item - push.first_item, least = n_items / n_shares, n_larger = n_items % n_shares;
  next_item = push.first_item + share * least + min(share, n_larger);
  share_end = next_item + least + (share < n_larger ? 1 : 0);
}

// Finds the head that an item belongs to, HEAD_FIRST_TILE or HEAD_FIRST_SPLIT, its entries, and where its items in the share
// end.
void find_head(uint item, uint word) {
  head = head_of(item, word);
  next_item = head + 1 < push.end_head ? min(share_end, head_word(head + 1, word)) : share_end;
  n_entries = head_word(head, HEAD_N_ENTRIES);
  find_rows(head);
}

void find_subgroup(uint head_tile) {
  group_head = min(head_tile * TILE_HEADS + gl_SubgroupID % TILE_HEADS, GROUP - 1);
  part = PARTS == 1 ? 0 : gl_SubgroupID / TILE_HEADS % PARTS;
  entry_part = gl_SubgroupID / TILE_HEADS / PARTS;
}

// Word of a query head's prepared operands.
uint prepared_of(uint of_group) {
  return push.prepared + (head * GROUP + of_group) * PREPARED_WORDS;
}

void load_head_matrix(uint at, out HEAD_MATRIX a) {
  coopMatLoad(a, work_halves, at, SIZE / 4, gl_CooperativeMatrixLayoutRowMajor);
}

// Rows of the step as columns: matrix c of this subgroup's, elements from k * SIZE on.
void load_entry_matrix(uint c, uint k, out ENTRY_MATRIX b) {
  coopMatLoad(b, staged, (entry_part * COLUMN_MATRICES + c) * SIZE * ROW_STRIDE + k * SIZE / 8, ROW_STRIDE,
              gl_CooperativeMatrixLayoutColumnMajor);
}

#endif
