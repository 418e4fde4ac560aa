#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Products of small integers, which f16 and f32 hold exactly: operands from a buffer and from shared memory, by rows
// and by columns, summed over two products, and arithmetic element by element. Every subgroup has rows of its own.
#include "index.glsl"

layout(constant_id = 0) const uint M = 16;
layout(constant_id = 1) const uint N = 16;
layout(constant_id = 2) const uint K = 16;

#define MAX_EDGE      16
#define MAX_SUBGROUPS 4 // that have rows

layout(set = 0, binding = 0) readonly buffer In { float16_t operands[]; }; // B: 2 x [N][K]; A: subgroups x 2 x [M][K]
layout(set = 0, binding = 1) writeonly buffer Out { float product[]; };    // 2 x subgroups x [M][N]

layout(push_constant) uniform Push { uint n_groups; } push;

shared float16_t staged[2 * MAX_EDGE * MAX_EDGE];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = gl_LocalInvocationIndex; i < 2 * N * K; i += LOCAL_SIZE) staged[i] = operands[i];
  barrier();
  coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a;
  coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
  coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sum =
      coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
  const uint n_subgroups = min(gl_NumSubgroups, MAX_SUBGROUPS);
  if (gl_SubgroupID >= n_subgroups) return;
  const uint first = 2 * N * K + gl_SubgroupID * 2 * M * K;
  coopMatLoad(a, operands, first, K, gl_CooperativeMatrixLayoutRowMajor);
  coopMatLoad(b, operands, 0, K, gl_CooperativeMatrixLayoutColumnMajor);
  sum = coopMatMulAdd(a, b, sum);
  coopMatLoad(a, operands, first + M * K, K, gl_CooperativeMatrixLayoutRowMajor);
  coopMatLoad(b, staged, N * K, K, gl_CooperativeMatrixLayoutColumnMajor);
  sum = coopMatMulAdd(a, b, sum);
  coopMatStore(sum, product, gl_SubgroupID * M * N, N, gl_CooperativeMatrixLayoutRowMajor);
  for (int i = 0; i < sum.length(); i++) sum[i] = sum[i] * sum[i] + float(gl_SubgroupID);
  coopMatStore(sum, product, (n_subgroups + gl_SubgroupID) * M * N, N, gl_CooperativeMatrixLayoutRowMajor);
}
