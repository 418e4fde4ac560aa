// Exclusive prefix sums over the workgroup, in invocation order.
#ifndef SCAN_GLSL
#define SCAN_GLSL

#define SCAN_GROUP  8 // invocations whose values one of them adds up first
#define SCAN_GROUPS (LOCAL_SIZE / SCAN_GROUP)

shared uint scan_values[LOCAL_SIZE], scan_groups[SCAN_GROUPS];

uint scan_exclusive(uint value, out uint total) {
  const uint me = gl_LocalInvocationIndex, group = me / SCAN_GROUP;
  barrier();
  scan_values[me] = value;
  barrier();
  if (me < SCAN_GROUPS) {
    uint sum = 0;
    for (uint i = 0; i < SCAN_GROUP; i++) sum += scan_values[me * SCAN_GROUP + i];
    scan_groups[me] = sum;
  }
  barrier();
  uint before = 0;
  total = 0;
  for (uint i = 0; i < SCAN_GROUPS; i++) {
    before += i < group ? scan_groups[i] : 0;
    total += scan_groups[i];
  }
  for (uint i = group * SCAN_GROUP; i < me; i++) before += scan_values[i];
  return before;
}

#endif
