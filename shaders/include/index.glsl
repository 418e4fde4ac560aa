// Numbers of workgroups and invocations, the same on every device. Workgroups are folded into two dimensions by the
// host where there are more than the device takes in x, so every shader begins with
//   if (workgroup_index() >= push.n_groups) return;
#ifndef INDEX_GLSL
#define INDEX_GLSL

#ifndef LOCAL_SIZE
#define LOCAL_SIZE 128
#endif
layout(local_size_x = LOCAL_SIZE, local_size_y = 1, local_size_z = 1) in;

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

#endif
