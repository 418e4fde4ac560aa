// Exclusive prefix sums over the workgroup, in invocation order.
#ifndef SCAN_GLSL
#define SCAN_GLSL

shared uint scan_values[LOCAL_SIZE];

uint scan_exclusive(uint value, out uint total) {
  const uint me = gl_LocalInvocationIndex;
  barrier();
  scan_values[me] = value;
  for (uint width = 1; width < LOCAL_SIZE; width *= 2) {
    barrier();
    const uint left = me >= width ? scan_values[me - width] : 0;
    barrier();
    scan_values[me] += left;
  }
  barrier();
  total = scan_values[LOCAL_SIZE - 1];
  return scan_values[me] - value;
}

#endif
