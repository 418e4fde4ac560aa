#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
// The device's rate of f16 matrix products with f32 sums: eight sums a subgroup that do not wait for each other, operands
// in registers. 8 * 2 * M * N * K * ROUNDS flops a subgroup.
#include "index.glsl"

layout(constant_id = 0) const uint ROUNDS = 256;
layout(constant_id = 1) const uint M = 16;
layout(constant_id = 2) const uint N = 16;
layout(constant_id = 3) const uint K = 16;

layout(set = 0, binding = 0) readonly buffer Operands { float16_t operands[]; };
layout(set = 0, binding = 1) writeonly buffer Out { float result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint keep;
} push;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[2];
  coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b[4];
  coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sum[8];
  [[unroll]] for (uint i = 0; i < 2; i++) coopMatLoad(a[i], operands, i * M * K, K, gl_CooperativeMatrixLayoutRowMajor);
  [[unroll]] for (uint i = 0; i < 4; i++) coopMatLoad(b[i], operands, i * K * N, N, gl_CooperativeMatrixLayoutRowMajor);
  [[unroll]] for (uint i = 0; i < 8; i++) sum[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
  for (uint round = 0; round < ROUNDS; round++)
    [[unroll]] for (uint i = 0; i < 8; i++) sum[i] = coopMatMulAdd(a[i / 4], b[i % 4], sum[i]);
  // Never true, but the compiler can't know.
  if (push.keep != 0) {
    [[unroll]] for (uint i = 0; i < 8; i++)
      coopMatStore(sum[i], result, i * M * N, N, gl_CooperativeMatrixLayoutRowMajor);
  }
}
