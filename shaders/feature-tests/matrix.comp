#version 450
// Compiles where glslang knows what the cooperative matrix variants are written in.
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

layout(local_size_x = 128) in;
layout(constant_id = 0) const uint SIZE = 16;
layout(set = 0, binding = 0) buffer Matrix { float16_t halves[]; };

void main() {
  coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA> a;
  coopMatLoad(a, halves, 0, SIZE, gl_CooperativeMatrixLayoutRowMajor);
  coopMatStore(a, halves, 0, SIZE, gl_CooperativeMatrixLayoutRowMajor);
}
