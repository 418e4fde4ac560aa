/* policy.c: turns what the caller wrote into rules without an AUTO, a budget in entries and selection
 * problems. */
#include "core/core.h"

#define DEFAULT_WINDOW      32
#define MAX_WINDOW          256
#define DEFAULT_POOL_WIDTH  7
#define MAX_POOL_WIDTH      31
#define MAX_HEADS_PER_GROUP 16
#define MAX_HEAD_DIM        256

/* Which fields a kind has, and its defaults. */
typedef struct kind_traits {
  const char *name;
  bool scope, gqa, pool, normalize, floor, seed;
  bool within_layers; /* the scope is layer or head */
  laprox_scope default_scope;
  uint32_t default_pool_width, default_sinks;
  uint32_t sinks_share; /* of a head's places, one part in so many: 0 = all */
} kind_traits;

static const kind_traits traits[] = {
    [LAPROX_POLICY_LAPROX] = {"laprox", .scope = true, .gqa = true, .pool = true, .normalize = true,
                              .floor = true, .default_scope = LAPROX_SCOPE_GLOBAL, .default_pool_width = 7},
    [LAPROX_POLICY_SNAPKV] = {"snapkv", .scope = true, .pool = true, .normalize = true, .floor = true,
                              .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 7},
    [LAPROX_POLICY_STREAMING] = {"streaming", .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 1,
                                 .default_sinks = 4},
    [LAPROX_POLICY_RANDOM] = {"random", .scope = true, .floor = true, .seed = true,
                              .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 1},
    [LAPROX_POLICY_FULL] = {"full", .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 1},
    [LAPROX_POLICY_ADAKV] = {"adakv", .pool = true, .default_scope = LAPROX_SCOPE_LAYER,
                             .default_pool_width = 7},
    [LAPROX_POLICY_PYRAMIDKV] = {"pyramidkv", .pool = true, .default_scope = LAPROX_SCOPE_HEAD,
                                 .default_pool_width = 7},
    [LAPROX_POLICY_VATP] = {"vatp", .scope = true, .pool = true, .floor = true,
                            .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 1, .default_sinks = 20,
                            .sinks_share = 2},
    [LAPROX_POLICY_TOVA] = {"tova", .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 1},
    [LAPROX_POLICY_KEYDIFF] = {"keydiff", .scope = true, .floor = true, .default_scope = LAPROX_SCOPE_HEAD,
                               .default_pool_width = 1},
    [LAPROX_POLICY_KNORM] = {"knorm", .scope = true, .floor = true, .default_scope = LAPROX_SCOPE_HEAD,
                             .default_pool_width = 1},
    [LAPROX_POLICY_CRITICALKV] = {"criticalkv", .scope = true, .pool = true, .within_layers = true,
                                  .default_scope = LAPROX_SCOPE_HEAD, .default_pool_width = 7},
    [LAPROX_POLICY_DEFENSIVEKV] = {"defensivekv", .pool = true, .default_scope = LAPROX_SCOPE_LAYER,
                                   .default_pool_width = 5},
    [LAPROX_POLICY_LAYER_DEFENSIVEKV] = {"layer-defensivekv", .pool = true,
                                         .default_scope = LAPROX_SCOPE_GLOBAL, .default_pool_width = 5},
};
enum { N_KINDS = sizeof traits / sizeof *traits };

static const kind_traits *traits_of(laprox_policy_kind kind) {
  if (kind == LAPROX_POLICY_AUTO) kind = LAPROX_POLICY_LAPROX;
  return (unsigned)kind < N_KINDS ? &traits[kind] : NULL;
}

const char *laprox_policy_name(laprox_policy_kind kind) {
  const kind_traits *has = traits_of(kind);
  return has ? has->name : NULL;
}

static laprox_result check_field(const laprox_host *host, const char *kind, const char *field, bool has,
                                 uint32_t value, uint32_t limit) {
  if (!has && value != 0) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "policy %s has no %s: it must be left at 0, not %u",
                    kind, field, value);
  }
  if (value > limit) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "policy %s: %s %u is not one of 0 to %u", kind,
                    field, value, limit);
  }
  return LAPROX_OK;
}

static laprox_result check_fields(const laprox_host *host, const laprox_policy *policy,
                                  const kind_traits *has) {
  const char *kind = has->name;
  const struct {
    const char *name;
    bool has;
    uint32_t value, limit;
  } fields[] = {
      {"scope", has->scope, (uint32_t)policy->scope, LAPROX_SCOPE_TOKEN},
      {"gqa", has->gqa, (uint32_t)policy->gqa, LAPROX_GQA_ATTENTION_MEAN},
      {"pool", has->pool, (uint32_t)policy->pool, LAPROX_POOL_MAX},
      {"pool_width", has->pool, policy->pool_width, UINT32_MAX},
      {"normalize", has->normalize, (uint32_t)policy->normalize, LAPROX_SWITCH_OFF},
      {"pool_before", has->gqa, (uint32_t)policy->pool_before, LAPROX_SWITCH_OFF},
      {"floor", has->floor, policy->floor, UINT32_MAX},
      {"seed", has->seed, policy->seed, UINT32_MAX},
  };
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    laprox_result result =
        check_field(host, kind, fields[i].name, fields[i].has, fields[i].value, fields[i].limit);
    if (result != LAPROX_OK) return result;
  }
  if (policy->pool_before == LAPROX_SWITCH_ON && policy->gqa == LAPROX_GQA_JOINT) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "policy %s: pool_before needs norms of attention alone, which gqa joint does not have",
                    kind);
  }
  const bool token = policy->scope == LAPROX_SCOPE_TOKEN;
  if (has->within_layers && (policy->scope == LAPROX_SCOPE_GLOBAL || token)) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "policy %s: its scope is layer or head, not %s",
                    kind, token ? "token" : "global");
  }
  if (token && policy->floor != 0 && policy->floor != LAPROX_NONE) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "policy %s: floor %u, but with scope token all heads keep the same entries", kind,
                    policy->floor);
  }
  if (policy->window > MAX_WINDOW) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "policy %s: window %u is not 1 to %u", kind,
                    policy->window, MAX_WINDOW);
  }
  uint32_t width = policy->pool_width;
  if (width != 0 && width != LAPROX_NONE && (width % 2 == 0 || width > MAX_POOL_WIDTH)) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "policy %s: pool_width %u is not an odd number of 1 to %u", kind, width, MAX_POOL_WIDTH);
  }
  return LAPROX_OK;
}

static uint32_t number_or(uint32_t value, uint32_t automatic, uint32_t none) {
  return value == 0 ? automatic : value == LAPROX_NONE ? none : value;
}

laprox_result lpx_rules_resolve(const laprox_host *host, const laprox_policy *policy, lpx_rules *out) {
  *out = (lpx_rules){0};
  const kind_traits *has = traits_of(policy->kind);
  if (!has) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "policy kind %d is unknown", (int)policy->kind);
  }
  laprox_result result = check_fields(host, policy, has);
  if (result != LAPROX_OK) return result;

  lpx_rules rules = {
      .kind = policy->kind == LAPROX_POLICY_AUTO ? LAPROX_POLICY_LAPROX : policy->kind,
      .scope = policy->scope == LAPROX_SCOPE_AUTO ? has->default_scope : policy->scope,
      .gqa = policy->gqa == LAPROX_GQA_AUTO ? LAPROX_GQA_MEAN : policy->gqa,
      .pool = policy->pool == LAPROX_POOL_AUTO ? LAPROX_POOL_AVERAGE : policy->pool,
      .pool_width = number_or(policy->pool_width, has->default_pool_width, 1),
      .window = number_or(policy->window, DEFAULT_WINDOW, 0),
      .sinks = number_or(policy->sinks, has->default_sinks, 0),
      .floor = number_or(policy->floor, 0, 0),
      .seed = policy->seed,
      .pool_before = policy->pool_before == LAPROX_SWITCH_ON,
      .sinks_yield = policy->sinks == 0,
  };
  rules.normalize = policy->normalize == LAPROX_SWITCH_AUTO ? rules.kind == LAPROX_POLICY_LAPROX
                                                            : policy->normalize == LAPROX_SWITCH_ON;
  *out = rules;
  return LAPROX_OK;
}

void lpx_rules_fit(lpx_rules *rules, uint32_t budget) {
  const uint32_t protected_entries = rules->window + rules->floor;
  const uint32_t share = traits_of(rules->kind)->sinks_share;
  const uint32_t room = (budget > protected_entries ? budget - protected_entries : 0) / (share ? share : 1);
  if (rules->sinks_yield && rules->sinks > room) rules->sinks = room;
}

bool lpx_rules_use_keys(const lpx_rules *rules) {
  return rules->kind != LAPROX_POLICY_STREAMING && rules->kind != LAPROX_POLICY_RANDOM &&
         rules->kind != LAPROX_POLICY_FULL;
}

bool lpx_rules_use_attention(const lpx_rules *rules) {
  return lpx_rules_use_keys(rules) && rules->kind != LAPROX_POLICY_KEYDIFF &&
         rules->kind != LAPROX_POLICY_KNORM;
}

bool lpx_rules_use_values(const lpx_rules *rules) {
  return lpx_rules_factor(rules) != LPX_FACTOR_NONE || rules->kind == LAPROX_POLICY_VATP;
}

lpx_factor lpx_rules_factor(const lpx_rules *rules) {
  switch (rules->kind) {
  case LAPROX_POLICY_LAPROX:
    return LPX_FACTOR_TRIANGLE;
  case LAPROX_POLICY_CRITICALKV:
  case LAPROX_POLICY_DEFENSIVEKV:
  case LAPROX_POLICY_LAYER_DEFENSIVEKV:
    return LPX_FACTOR_PROJECTION;
  default:
    return LPX_FACTOR_NONE;
  }
}

uint32_t lpx_pyramid_places(uint32_t n_layers, uint32_t layer, uint32_t places, uint32_t most) {
  enum { LAST_SHARE = 20 };
  const uint64_t mean = places, capped = most < places ? places : most, steps = n_layers - 1;
  if (steps == 0 || places == 0) return places;
  /* Layer l has (first * (steps - l) + last * l) / divisor places, before rounding. */
  uint64_t first = (2 * LAST_SHARE - 1) * mean, last = mean, divisor = LAST_SHARE * steps;
  if (first > capped * LAST_SHARE) {
    first = capped;
    last = 2 * mean - capped;
    divisor = steps;
  }
  const uint64_t own = first * (steps - layer) + last * layer, own_rest = own % divisor;
  uint64_t left = mean * n_layers, n_before = 0;
  for (uint64_t l = 0; l < n_layers; l++) {
    const uint64_t share = first * (steps - l) + last * l, rest = share % divisor;
    left -= share / divisor;
    n_before += rest > own_rest || (rest == own_rest && l < layer);
  }
  return (uint32_t)(own / divisor + (n_before < left));
}

laprox_result lpx_budget_resolve(const laprox_host *host, const lpx_rules *rules, const laprox_budget *budget,
                                 uint32_t n_tokens, uint32_t *out) {
  *out = UINT32_MAX;
  /* written so that NaN fails too */
  if (!(budget->share >= 0.0 && budget->share <= 1.0)) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "budget share %g is not 0 to 1", budget->share);
  }
  if (budget->tokens != 0 && budget->share > 0.0) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "budget has both tokens %u and share %g: only one is allowed", budget->tokens,
                    budget->share);
  }
  if (rules->kind == LAPROX_POLICY_FULL || (budget->tokens == 0 && budget->share <= 0.0)) return LAPROX_OK;

  const uint32_t sinks = rules->sinks_yield ? 0 : rules->sinks;
  uint64_t protected_entries = (uint64_t)rules->window + sinks + rules->floor;
  uint64_t least = protected_entries > rules->window ? protected_entries : (uint64_t)rules->window + 1;
  uint64_t entries = budget->tokens;
  if (budget->tokens == 0) {
    entries = (uint64_t)(budget->share * (double)n_tokens + 0.5);
    if (entries < least) entries = least;
  }
  if (entries < least) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "budget of %u tokens is too small: window %u, sinks %u and floor %u need at least %llu",
                    budget->tokens, rules->window, sinks, rules->floor, (unsigned long long)least);
  }
  if (n_tokens > rules->window && entries < n_tokens) *out = (uint32_t)entries;
  return LAPROX_OK;
}

uint32_t lpx_heads_per_problem(const lpx_rules *rules, const laprox_shape *shape) {
  switch (rules->scope) {
  case LAPROX_SCOPE_GLOBAL:
    return shape->n_layers * shape->n_kv_heads;
  case LAPROX_SCOPE_LAYER:
    return shape->n_kv_heads;
  case LAPROX_SCOPE_HEAD:
  case LAPROX_SCOPE_TOKEN:
  case LAPROX_SCOPE_AUTO:
    break;
  }
  return 1;
}

laprox_result lpx_shape_check(const laprox_host *host, const laprox_shape *shape) {
  if (shape->n_layers == 0 || shape->n_heads == 0 || shape->n_kv_heads == 0 || shape->head_dim == 0) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "shape: layers %u, heads %u, KV heads %u and head_dim %u must all be at least 1",
                    shape->n_layers, shape->n_heads, shape->n_kv_heads, shape->head_dim);
  }
  if (shape->n_heads % shape->n_kv_heads != 0) {
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "shape: %u heads are no multiple of %u KV heads",
                    shape->n_heads, shape->n_kv_heads);
  }
  if (shape->n_heads / shape->n_kv_heads > MAX_HEADS_PER_GROUP) {
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED, "shape: %u heads for each KV head, the limit is %u",
                    shape->n_heads / shape->n_kv_heads, MAX_HEADS_PER_GROUP);
  }
  if (shape->head_dim % 4 != 0 || shape->head_dim > MAX_HEAD_DIM) {
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED, "shape: head_dim %u is not a multiple of 4 of at most %u",
                    shape->head_dim, MAX_HEAD_DIM);
  }
  if ((uint64_t)shape->n_layers * shape->n_heads > INT32_MAX) {
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                    "shape: %u layers of %u heads, the limit is 2^31 - 1 heads in all", shape->n_layers,
                    shape->n_heads);
  }
  return LAPROX_OK;
}
