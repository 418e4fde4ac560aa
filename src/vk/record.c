/* record.c: programs. Dispatch folding, descriptor sets and barriers have their one place here. */
#include "vk/vk.h"

#include <string.h>

#define MAX_UPDATE_BYTES 65536 /* vkCmdUpdateBuffer's own limit */

typedef enum command_kind {
  COMMAND_DISPATCH,
  COMMAND_BARRIER,
  COMMAND_COPY,
  COMMAND_FILL,
  COMMAND_UPDATE
} command_kind;

typedef struct command {
  command_kind kind;
  uint32_t groups_x, groups_y;
  uint32_t push_bytes;
  uint32_t
      data; /* dispatch: first byte of the push constants in `bytes`; update: of its data; fill: the value */
  uint32_t first_range; /* dispatch: in `ranges` */
  VkPipeline pipeline;
  const char *shader;
  uint32_t n_bindings;
  VkDescriptorSet set;
  laprox_buffer from, to;
} command;

typedef struct step {
  uint32_t first, count;
  uint64_t cost;
  uint32_t section, n_beside;
} step;

enum { MOST_BESIDE = 8 };

struct lpx_program {
  laprox_context *context;
  const char *name;
  laprox_result failure; /* the first one; later commands are ignored */
  command *commands;
  uint32_t n_commands, commands_capacity;
  laprox_buffer *ranges;
  uint32_t n_ranges, ranges_capacity;
  uint8_t *bytes;
  uint32_t n_bytes, bytes_capacity;
  step *steps;
  uint32_t n_steps, steps_capacity;
  uint64_t cost; /* since the last step mark */
  uint64_t step_limit;
  uint32_t section, n_beside; /* that steps are marked for */
  VkDescriptorPool pool;
  uint32_t pool_sets, pool_descriptors; /* what `pool` was made for */
  laprox_buffer update_source;          /* recorded updates copy from here, if it is not empty */
};

laprox_result lpx_program_create(laprox_context *context, const char *name, lpx_program **out) {
  *out = NULL;
  const laprox_result result = lpx_vk_check_lost(context);
  if (result) return result;
  *out = lpx_allocate(&context->host, 1, sizeof **out);
  if (!*out) return lpx_fail_memory(&context->host, "a program");
  (*out)->context = context;
  (*out)->name = name;
  return LAPROX_OK;
}

void lpx_program_destroy(lpx_program *program) {
  if (!program) return;
  laprox_context *context = program->context;
  if (program->pool) context->vk.DestroyDescriptorPool(context->device, program->pool, NULL);
  lpx_release(&context->host, program->commands);
  lpx_release(&context->host, program->ranges);
  lpx_release(&context->host, program->bytes);
  lpx_release(&context->host, program->steps);
  lpx_release(&context->host, program);
}

void lpx_program_reset(lpx_program *program) {
  program->n_commands = program->n_ranges = program->n_bytes = program->n_steps = 0;
  program->cost = program->step_limit = 0;
  program->section = program->n_beside = 0;
  program->failure = LAPROX_OK;
}

/* Room for `more` elements behind `count` in a growing array; false once the program has failed. */
static bool reserve(lpx_program *program, void **array, uint32_t count, uint32_t *capacity, uint32_t more,
                    size_t element_size) {
  if (program->failure) return false;
  if (more <= *capacity - count) return true;
  const uint64_t wanted = ((uint64_t)count + more) * 3 / 2 + 16;
  void *grown = wanted > UINT32_MAX
                    ? NULL
                    : lpx_reallocate(&program->context->host, *array, (size_t)wanted, element_size);
  if (!grown) {
    program->failure = lpx_fail_memory(&program->context->host, program->name);
    return false;
  }
  *array = grown;
  *capacity = (uint32_t)wanted;
  return true;
}

static command *append(lpx_program *program, command_kind kind) {
  if (!reserve(program, (void **)&program->commands, program->n_commands, &program->commands_capacity, 1,
               sizeof *program->commands))
    return NULL;
  command *added = &program->commands[program->n_commands++];
  *added = (command){.kind = kind};
  return added;
}

static uint32_t append_bytes(lpx_program *program, const void *data, uint32_t n) {
  if (!reserve(program, (void **)&program->bytes, program->n_bytes, &program->bytes_capacity, n, 1)) return 0;
  const uint32_t at = program->n_bytes;
  memcpy(program->bytes + at, data, n);
  program->n_bytes += n;
  return at;
}

static bool check_ranges(lpx_program *program, const laprox_buffer *ranges, uint32_t n) {
  const laprox_context *context = program->context;
  for (uint32_t i = 0; i < n; i++) {
    const char *problem = NULL;
    if (!ranges[i].buffer || !ranges[i].size)
      problem = "is empty";
    else if (ranges[i].size > context->max_range)
      problem = "exceeds maxStorageBufferRange";
    else if (ranges[i].offset % context->range_alignment)
      problem = "is not aligned to minStorageBufferOffsetAlignment";
    if (!problem) continue;
    program->failure =
        lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED,
                 "%s: buffer %u of a dispatch %s (offset %llu, %llu bytes; limits %llu, %llu)", program->name,
                 i, problem, (unsigned long long)ranges[i].offset, (unsigned long long)ranges[i].size,
                 (unsigned long long)context->range_alignment, (unsigned long long)context->max_range);
    return false;
  }
  return true;
}

void lpx_program_dispatch(lpx_program *program, const lpx_pipeline *pipeline, const laprox_buffer *ranges,
                          void *push, uint32_t push_bytes, uint64_t n_groups, uint64_t cost) {
  if (!n_groups || program->failure) return;
  const uint64_t width = program->context->max_groups;
  if (n_groups > width * width) {
    program->failure = lpx_fail(&program->context->host, LAPROX_ERROR_UNSUPPORTED,
                                "%s: a dispatch of %llu workgroups, limit %llu", program->name,
                                (unsigned long long)n_groups, (unsigned long long)(width * width));
    return;
  }
  if (!check_ranges(program, ranges, pipeline->n_bindings)) return;
  if (program->step_limit && program->cost && program->cost + cost > program->step_limit)
    lpx_program_mark_step(program);
  const uint32_t groups = (uint32_t)n_groups;
  memcpy(push, &groups, sizeof groups);
  command *dispatch = append(program, COMMAND_DISPATCH);
  if (!dispatch) return;
  dispatch->groups_x = n_groups < width ? groups : (uint32_t)width;
  dispatch->groups_y = (uint32_t)((n_groups + dispatch->groups_x - 1) / dispatch->groups_x);
  dispatch->pipeline = pipeline->pipeline;
  dispatch->shader = pipeline->shader;
  dispatch->n_bindings = pipeline->n_bindings;
  dispatch->push_bytes = push_bytes;
  dispatch->data = append_bytes(program, push, push_bytes);
  dispatch->first_range = program->n_ranges;
  if (!reserve(program, (void **)&program->ranges, program->n_ranges, &program->ranges_capacity,
               pipeline->n_bindings, sizeof *ranges))
    return;
  memcpy(program->ranges + program->n_ranges, ranges, pipeline->n_bindings * sizeof *ranges);
  program->n_ranges += pipeline->n_bindings;
  program->cost += cost;
}

void lpx_program_barrier(lpx_program *program) {
  if (program->n_commands && program->commands[program->n_commands - 1].kind == COMMAND_BARRIER) return;
  (void)append(program, COMMAND_BARRIER);
}

void lpx_program_copy(lpx_program *program, laprox_buffer from, laprox_buffer to) {
  if (!from.size) return;
  command *copy = append(program, COMMAND_COPY);
  if (!copy) return;
  copy->from = from;
  copy->to = to;
  program->cost += from.size;
}

void lpx_program_fill(lpx_program *program, laprox_buffer range, uint32_t value) {
  if (!range.size) return;
  command *fill = append(program, COMMAND_FILL);
  if (!fill) return;
  fill->to = range;
  fill->data = value;
  program->cost += range.size;
}

/* Updates of neighbouring ranges, one after the other, are one command. */
static bool extend_update(lpx_program *program, laprox_buffer range, const void *data, uint32_t bytes) {
  command *last = program->n_commands ? &program->commands[program->n_commands - 1] : NULL;
  if (!last || last->kind != COMMAND_UPDATE || last->to.buffer != range.buffer ||
      last->to.offset + last->to.size != range.offset || last->to.size + bytes > MAX_UPDATE_BYTES ||
      last->data + last->to.size != program->n_bytes)
    return false;
  (void)append_bytes(program, data, bytes);
  last->to.size += bytes;
  return true;
}

void lpx_program_update(lpx_program *program, laprox_buffer range, const void *data, size_t bytes) {
  const size_t largest = MAX_UPDATE_BYTES;
  if (bytes <= largest && extend_update(program, range, data, (uint32_t)bytes)) return;
  for (size_t done = 0; done < bytes; done += largest) {
    const uint32_t now = (uint32_t)(bytes - done < largest ? bytes - done : largest);
    command *update = append(program, COMMAND_UPDATE);
    if (!update) return;
    update->to = lpx_buffer_part(range, done, now);
    update->data = append_bytes(program, (const uint8_t *)data + done, now);
  }
}

/* Commands that belong to a step. */
static uint32_t n_marked(const lpx_program *program) {
  if (!program->n_steps) return 0;
  const step *last = &program->steps[program->n_steps - 1];
  return last->first + last->count;
}

void lpx_program_mark_step(lpx_program *program) {
  if (!reserve(program, (void **)&program->steps, program->n_steps, &program->steps_capacity, 1,
               sizeof(step)))
    return;
  const uint32_t first = n_marked(program);
  program->steps[program->n_steps++] = (step){.first = first,
                                              .count = program->n_commands - first,
                                              .cost = program->cost,
                                              .section = program->section,
                                              .n_beside = program->n_beside};
  program->cost = 0;
}

void lpx_program_begin_section(lpx_program *program, uint32_t n_beside) {
  if (n_marked(program) < program->n_commands) lpx_program_mark_step(program);
  program->section++;
  program->n_beside = n_beside < MOST_BESIDE ? n_beside : MOST_BESIDE;
}

void lpx_program_limit_steps(lpx_program *program, uint64_t cost) {
  program->step_limit = cost;
}

/* Makes a pool that holds n_sets, or takes the one there is. */
static laprox_result prepare_pool(lpx_program *program, uint32_t n_sets) {
  laprox_context *context = program->context;
  if (program->pool && n_sets <= program->pool_sets && program->n_ranges <= program->pool_descriptors)
    return lpx_vk_result(context, context->vk.ResetDescriptorPool(context->device, program->pool, 0),
                         "vkResetDescriptorPool");
  if (program->pool) context->vk.DestroyDescriptorPool(context->device, program->pool, NULL);
  program->pool = VK_NULL_HANDLE;
  const VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                     .descriptorCount = program->n_ranges};
  const VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                           .maxSets = n_sets,
                                           .poolSizeCount = 1,
                                           .pPoolSizes = &size};
  const laprox_result result =
      lpx_vk_result(context, context->vk.CreateDescriptorPool(context->device, &info, NULL, &program->pool),
                    "vkCreateDescriptorPool");
  program->pool_sets = n_sets;
  program->pool_descriptors = program->n_ranges;
  return result;
}

static laprox_result write_set(lpx_program *program, command *dispatch) {
  laprox_context *context = program->context;
  const VkDescriptorSetAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                            .descriptorPool = program->pool,
                                            .descriptorSetCount = 1,
                                            .pSetLayouts = &context->set_layouts[dispatch->n_bindings]};
  const laprox_result result =
      lpx_vk_result(context, context->vk.AllocateDescriptorSets(context->device, &info, &dispatch->set),
                    "vkAllocateDescriptorSets");
  if (result) return result;
  VkDescriptorBufferInfo buffers[LPX_MAX_BINDINGS];
  VkWriteDescriptorSet writes[LPX_MAX_BINDINGS];
  for (uint32_t i = 0; i < dispatch->n_bindings; i++) {
    const laprox_buffer *range = &program->ranges[dispatch->first_range + i];
    buffers[i] =
        (VkDescriptorBufferInfo){.buffer = range->buffer, .offset = range->offset, .range = range->size};
    writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                       .dstSet = dispatch->set,
                                       .dstBinding = i,
                                       .descriptorCount = 1,
                                       .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                       .pBufferInfo = &buffers[i]};
  }
  context->vk.UpdateDescriptorSets(context->device, dispatch->n_bindings, writes, 0, NULL);
  return LAPROX_OK;
}

laprox_result lpx_program_finish_building(lpx_program *program) {
  if (n_marked(program) < program->n_commands) lpx_program_mark_step(program);
  uint32_t n_sets = 0;
  for (uint32_t i = 0; i < program->n_commands; i++) n_sets += program->commands[i].kind == COMMAND_DISPATCH;
  if (!program->failure && n_sets) program->failure = prepare_pool(program, n_sets);
  for (uint32_t i = 0; i < program->n_commands && !program->failure; i++)
    if (program->commands[i].kind == COMMAND_DISPATCH)
      program->failure = write_set(program, &program->commands[i]);
  return program->failure;
}

uint32_t lpx_program_n_steps(const lpx_program *program) {
  return program->n_steps;
}

uint64_t lpx_program_step_cost(const lpx_program *program, uint32_t index) {
  return index < program->n_steps ? program->steps[index].cost : 0;
}

void lpx_record_barrier(const laprox_context *context, VkCommandBuffer command_buffer) {
  const VkAccessFlags all = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                            VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  const VkMemoryBarrier barrier = {
      .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = all, .dstAccessMask = all};
  context->vk.CmdPipelineBarrier(command_buffer, stages, stages, 0, 1, &barrier, 0, NULL, 0, NULL);
}

static void record_dispatch(const lpx_program *program, const command *dispatch,
                            VkCommandBuffer command_buffer) {
  const lpx_vk *vk = &program->context->vk;
  const VkPipelineLayout layout = program->context->pipeline_layouts[dispatch->n_bindings];
  vk->CmdBindPipeline(command_buffer, VK_PIPELINE_BIND_POINT_COMPUTE, dispatch->pipeline);
  vk->CmdBindDescriptorSets(command_buffer, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &dispatch->set, 0,
                            NULL);
  vk->CmdPushConstants(command_buffer, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, dispatch->push_bytes,
                       program->bytes + dispatch->data);
  vk->CmdDispatch(command_buffer, dispatch->groups_x, dispatch->groups_y, 1);
}

/* Where an update's data stands in a source of all updates' data. */
static VkDeviceSize update_place(const lpx_program *program, const command *update) {
  VkDeviceSize place = program->update_source.offset;
  for (const command *item = program->commands; item < update; item++)
    if (item->kind == COMMAND_UPDATE) place += item->to.size;
  return place;
}

static void record_update(const lpx_program *program, const command *item, VkCommandBuffer command_buffer) {
  const lpx_vk *vk = &program->context->vk;
  if (!program->update_source.size) {
    vk->CmdUpdateBuffer(command_buffer, item->to.buffer, item->to.offset, item->to.size,
                        program->bytes + item->data);
    return;
  }
  const VkBufferCopy region = {
      .srcOffset = update_place(program, item), .dstOffset = item->to.offset, .size = item->to.size};
  vk->CmdCopyBuffer(command_buffer, program->update_source.buffer, item->to.buffer, 1, &region);
}

static void record_command(const lpx_program *program, const command *item, VkCommandBuffer command_buffer) {
  const lpx_vk *vk = &program->context->vk;
  switch (item->kind) {
  case COMMAND_DISPATCH:
    record_dispatch(program, item, command_buffer);
    break;
  case COMMAND_BARRIER:
    lpx_record_barrier(program->context, command_buffer);
    break;
  case COMMAND_COPY: {
    const VkBufferCopy region = {
        .srcOffset = item->from.offset, .dstOffset = item->to.offset, .size = item->from.size};
    vk->CmdCopyBuffer(command_buffer, item->from.buffer, item->to.buffer, 1, &region);
    break;
  }
  case COMMAND_FILL:
    vk->CmdFillBuffer(command_buffer, item->to.buffer, item->to.offset, item->to.size, item->data);
    break;
  case COMMAND_UPDATE:
    record_update(program, item, command_buffer);
    break;
  }
}

VkDeviceSize lpx_program_update_bytes(const lpx_program *program) {
  VkDeviceSize bytes = 0;
  for (uint32_t i = 0; i < program->n_commands; i++)
    if (program->commands[i].kind == COMMAND_UPDATE) bytes += program->commands[i].to.size;
  return bytes;
}

void lpx_program_write_updates(const lpx_program *program, void *to) {
  uint8_t *at = to;
  for (uint32_t i = 0; i < program->n_commands; i++) {
    const command *item = &program->commands[i];
    if (item->kind != COMMAND_UPDATE) continue;
    memcpy(at, program->bytes + item->data, (size_t)item->to.size);
    at += item->to.size;
  }
}

void lpx_program_set_update_source(lpx_program *program, laprox_buffer source) {
  program->update_source = source;
}

static bool same_range(const laprox_buffer *a, const laprox_buffer *b) {
  return a->buffer == b->buffer && a->offset == b->offset && a->size == b->size;
}

static bool same_dispatch(const lpx_program *a, const command *x, const lpx_program *b, const command *y) {
  if (x->pipeline != y->pipeline || x->groups_x != y->groups_x || x->groups_y != y->groups_y ||
      x->push_bytes != y->push_bytes || x->n_bindings != y->n_bindings ||
      memcmp(a->bytes + x->data, b->bytes + y->data, x->push_bytes) != 0)
    return false;
  for (uint32_t i = 0; i < x->n_bindings; i++)
    if (!same_range(&a->ranges[x->first_range + i], &b->ranges[y->first_range + i])) return false;
  return true;
}

bool lpx_program_same(const lpx_program *a, const lpx_program *b) {
  if (a->failure || b->failure || a->n_commands != b->n_commands) return false;
  for (uint32_t i = 0; i < a->n_commands; i++) {
    const command *x = &a->commands[i], *y = &b->commands[i];
    if (x->kind != y->kind || !same_range(&x->from, &y->from) || !same_range(&x->to, &y->to)) return false;
    if (x->kind == COMMAND_DISPATCH && !same_dispatch(a, x, b, y)) return false;
    if (x->kind == COMMAND_FILL && x->data != y->data) return false;
  }
  return true;
}

/* Sections that are being recorded side by side: [oldest, newest), in the order in which they begin. */
typedef struct sections {
  const lpx_program *program;
  uint32_t step, end_step; /* whose sections have not begun */
  uint32_t oldest, newest;
  uint32_t n_beside, lag;                       /* of the newest; lag: barriers till the next one may begin */
  uint32_t next[MOST_BESIDE], end[MOST_BESIDE]; /* commands that are left of each */
} sections;

static bool may_begin(const sections *s) {
  const uint32_t n = s->newest - s->oldest;
  if (s->step == s->end_step || !n) return s->step < s->end_step;
  return !s->lag && n < s->n_beside && s->program->steps[s->step].n_beside == s->n_beside;
}

/* Of a section, those steps that are to be recorded. Sections are spaced evenly, so that one ends when another is to
   begin. */
static void begin_section(sections *s) {
  const step *steps = s->program->steps, *first = &steps[s->step];
  const uint32_t place = s->newest++ % MOST_BESIDE;
  while (s->step < s->end_step && steps[s->step].section == first->section) s->step++;
  s->next[place] = first->first;
  s->end[place] = steps[s->step - 1].first + steps[s->step - 1].count;
  uint32_t n_barriers = 0;
  for (uint32_t i = s->next[place]; i < s->end[place]; i++)
    n_barriers += s->program->commands[i].kind == COMMAND_BARRIER;
  s->n_beside = first->n_beside;
  s->lag = s->n_beside > 1 ? (n_barriers + s->n_beside - 1) / s->n_beside : 0;
}

/* Up to its next barrier, which is passed over. */
static void record_stretch(sections *s, uint32_t place, VkCommandBuffer command_buffer) {
  const command *commands = s->program->commands;
  while (s->next[place] < s->end[place]) {
    const command *item = &commands[s->next[place]++];
    if (item->kind == COMMAND_BARRIER) return;
    record_command(s->program, item, command_buffer);
  }
}

void lpx_program_record_bare(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                             uint32_t count) {
  const uint32_t left = first < program->n_steps ? program->n_steps - first : 0;
  sections s = {.program = program, .step = first, .end_step = first + (count < left ? count : left)};
  for (;;) {
    if (may_begin(&s)) begin_section(&s);
    for (uint32_t i = s.newest; i-- > s.oldest;) record_stretch(&s, i % MOST_BESIDE, command_buffer);
    while (s.oldest < s.newest && s.next[s.oldest % MOST_BESIDE] == s.end[s.oldest % MOST_BESIDE]) s.oldest++;
    if (s.oldest == s.newest && s.step == s.end_step) break;
    if (s.lag) s.lag--;
    lpx_record_barrier(program->context, command_buffer);
  }
}

void lpx_program_record(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                        uint32_t count) {
  lpx_record_barrier(program->context, command_buffer);
  lpx_program_record_bare(program, command_buffer, first, count);
  lpx_record_barrier(program->context, command_buffer);
}

static void write_timestamp(const lpx_program *program, VkCommandBuffer command_buffer, VkQueryPool pool,
                            uint32_t query) {
  if (pool)
    program->context->vk.CmdWriteTimestamp(command_buffer, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, query);
}

uint32_t lpx_program_record_timed(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                                  uint32_t count, VkQueryPool pool, uint32_t n_queries, const char **names) {
  uint32_t n = 0;
  const char *shader = NULL;
  lpx_record_barrier(program->context, command_buffer);
  for (uint32_t i = first; i < first + count && i < program->n_steps; i++)
    for (uint32_t c = 0; c < program->steps[i].count; c++) {
      const command *item = &program->commands[program->steps[i].first + c];
      if (item->kind == COMMAND_DISPATCH && item->shader != shader) {
        if (shader && n + 1 < n_queries) write_timestamp(program, command_buffer, pool, n++);
        shader = names[n] = item->shader;
      }
      record_command(program, item, command_buffer);
    }
  lpx_record_barrier(program->context, command_buffer);
  if (shader) write_timestamp(program, command_buffer, pool, n++);
  return n;
}
