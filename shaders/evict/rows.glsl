// Where the entries of a KV head stand in the binding of K or V. The includer has push.rows and head_word(head, word).
#ifndef ROWS_GLSL
#define ROWS_GLSL

uint entries_begin, entries_end; // of the KV head that the binding holds
uint rows_base;                  // element of entry entries_begin

void find_rows(uint head) {
  const uint first = push.rows.segment == 0 ? 0 : head_word(head, HEAD_ROWS);
  entries_begin = max(first, push.rows.begin_entry);
  entries_end = min(first + head_word(head, HEAD_ROWS + 2 * push.rows.segment), push.rows.end_entry);
  const uint row = head_word(head, HEAD_ROW + 2 * push.rows.segment) + entries_begin - first;
  rows_base = head * push.rows.head_stride + row * push.rows.entry_stride - push.rows.origin;
}

bool has_row(uint entry) {
  return entry >= entries_begin && entry < entries_end;
}

// Whether there are any of the entries [first, end).
bool has_rows(uint first, uint end) {
  return max(first, entries_begin) < min(end, entries_end);
}

uint row_start(uint entry) {
  return rows_base + (entry - entries_begin) * push.rows.entry_stride;
}

// Whether every row begins at 16 bytes, of elements of 16 bits.
bool rows_are_wide() {
  return ((rows_base | push.rows.entry_stride) & 7u) == 0u;
}

#endif
