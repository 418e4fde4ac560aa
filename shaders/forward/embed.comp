// Rows of the token embedding for token ids. The table is bound slice by slice where it exceeds a binding's range;
// ids outside the slice are left to the other dispatches.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;

layout(push_constant) uniform Push {
  uint n_groups; // one a row
  uint dim;
  uint row_units; // uvec4s of a row of the table
  uint slice_first, slice_rows;
  uint output_first; // vec4s
} push;

layout(binding = 0) readonly buffer Ids { uint ids[]; };
layout(binding = 1) readonly buffer Weight { uvec4 weight[]; };
layout(binding = 2) writeonly buffer Output { vec4 hidden[]; };

#define WEIGHT_DATA weight
#include "weight.glsl"

void main() {
  const uint row = workgroup_index();
  if (row >= push.n_groups) return;
  const uint id = ids[row] - push.slice_first; // ids below the slice wrap around to large numbers
  if (id >= push.slice_rows) return;
  const uint quads = push.dim >> 2;
  for (uint c = gl_LocalInvocationID.x; c < quads; c += LOCAL_SIZE)
    hidden[push.output_first + row * quads + c] = load_weight(id * push.row_units, push.dim, c);
}
