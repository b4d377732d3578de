/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvm_mock_regex.h: the regular expressions of kvm_api_mock.h, which includes this file. As the host's they match bytes, the
 * first alternative that leads to a match wins, and the time goes with the subject's length. What they know of its syntax:
 *
 *     . [...] \d \w \s \D \W \S   \t \n \r \f \v \xHH   ^ $ \b \B \A \z   | ( ) (?: ) (?i) at the beginning
 *     * + ? {n} {n,} {n,m}, and these with a ? behind them
 *
 * Any other pattern is refused: it says that the host's may know it.
 */
#ifndef KVM_MOCK_REGEX_H
#define KVM_MOCK_REGEX_H

#ifndef KVM_API_MOCK_H
#error "include kvm_api.h, with -DKVM_API_MOCK"
#endif

enum {
	KVM_MOCK_MOST_REGEXES = 64,
	KVM_MOCK_LONGEST_PATTERN = 4 << 10,
	KVM_MOCK_LONGEST_SUBJECT = 64 << 10,
	KVM_MOCK_STEPS = 4096,
	KVM_MOCK_GROUPS = 10
};

enum kvm_mock_step_kind {
	KVM_STEP_SET,
	KVM_STEP_SPLIT,
	KVM_STEP_JUMP,
	KVM_STEP_SAVE,
	KVM_STEP_BEGIN,
	KVM_STEP_END,
	KVM_STEP_WORD,
	KVM_STEP_NO_WORD,
	KVM_STEP_MATCH
};

/* A step of a pattern's program. */
struct kvm_mock_step {
	enum kvm_mock_step_kind kind;
	int to, other;         /* where it goes on, and where if that leads nowhere; or the place that is saved */
	unsigned char set[32]; /* the bytes that are taken, one bit each */
};

struct kvm_mock_regex {
	struct kvm_mock_step *step;
	int steps;
	int groups; /* those without a number, too */
};
KVM_MOCK struct kvm_mock_regex *kvm_mock_regexes[KVM_MOCK_MOST_REGEXES];

/* ------------------------------------------------------------------ compiling */

struct kvm_mock_pattern {
	const char *at, *end, *why;
	bool any_case;
	int depth;
	struct kvm_mock_regex *regex;
};

KVM_MOCK int kvm_mock_emit(struct kvm_mock_pattern *p, enum kvm_mock_step_kind kind, int to, int other)
{
	struct kvm_mock_step *step;

	if (p->regex->steps == KVM_MOCK_STEPS) {
		p->why = "it is too large";
		return 0;
	}
	step = &p->regex->step[p->regex->steps];
	memset(step, 0, sizeof *step);
	step->kind = kind;
	step->to = to;
	step->other = other;
	return p->regex->steps++;
}

KVM_MOCK void kvm_mock_add(unsigned char *set, int from, int to)
{
	for (; from <= to; from++)
		set[from >> 3] |= (unsigned char)(1 << (from & 7));
}

KVM_MOCK bool kvm_mock_has(const unsigned char *set, int byte)
{
	return set[byte >> 3] >> (byte & 7) & 1;
}

/* The classes of \d and the like; false if it is none. */
KVM_MOCK bool kvm_mock_class(unsigned char *set, char name)
{
	unsigned char found[32] = {0};

	switch (name | 32) {
	case 'd':
		kvm_mock_add(found, '0', '9');
		break;
	case 'w':
		kvm_mock_add(found, '0', '9');
		kvm_mock_add(found, 'A', 'Z');
		kvm_mock_add(found, 'a', 'z');
		kvm_mock_add(found, '_', '_');
		break;
	case 's':
		kvm_mock_add(found, '\t', '\r');
		kvm_mock_add(found, ' ', ' ');
		break;
	default:
		return false;
	}
	for (int i = 0; i < 32; i++)
		set[i] |= name & 32 ? found[i] : (unsigned char)~found[i];
	return true;
}

/* The byte that is behind a backslash, or -1. */
KVM_MOCK int kvm_mock_escaped(struct kvm_mock_pattern *p)
{
	static const char names[] = "tnrfv", bytes[] = "\t\n\r\f\v";
	const char c = *p->at++;
	const char *const known = c ? strchr(names, c) : NULL;

	if (known)
		return bytes[known - names];
	if (c == 'x' && p->end - p->at >= 2) {
		char digits[3] = {p->at[0], p->at[1], 0}, *last;
		const long byte = strtol(digits, &last, 16);

		if (last == digits + 2) {
			p->at += 2;
			return (int)byte;
		}
	}
	if (c && strchr("\\.+*?()|[]{}^$#&-~/ \"'%,:;<=>@_`!", c))
		return (unsigned char)c;
	p->why = "an escape that this mock does not know";
	return -1;
}

/* [...], from behind its bracket. */
KVM_MOCK void kvm_mock_bracket(struct kvm_mock_pattern *p, unsigned char *set)
{
	const bool without = p->at < p->end && *p->at == '^';
	const char *const first = p->at += without;

	while (p->at < p->end && (*p->at != ']' || p->at == first) && !p->why) {
		int from = (unsigned char)*p->at++, to;

		if (from == '[' || (from == '&' && p->at < p->end && *p->at == '&')) {
			p->why = "a class in a class, which this mock does not know";
			return;
		}
		if (from == '\\' && p->at < p->end) {
			if (kvm_mock_class(set, *p->at)) {
				p->at++;
				continue;
			}
			from = kvm_mock_escaped(p);
		}
		to = from;
		if (p->end - p->at > 1 && p->at[0] == '-' && p->at[1] != ']') {
			p->at++;
			to = (unsigned char)*p->at++;
			if (to == '\\' && p->at < p->end)
				to = kvm_mock_escaped(p);
		}
		if (from < 0 || to < from) {
			p->why = p->why ? p->why : "a range that is none";
			return;
		}
		kvm_mock_add(set, from, to);
	}
	if (p->at++ >= p->end)
		p->why = "unclosed character class";
	for (int i = 0; p->any_case && i < 26; i++)
		if (kvm_mock_has(set, 'a' + i) || kvm_mock_has(set, 'A' + i)) {
			kvm_mock_add(set, 'a' + i, 'a' + i);
			kvm_mock_add(set, 'A' + i, 'A' + i);
		}
	for (int i = 0; without && i < 32; i++)
		set[i] = (unsigned char)~set[i];
}

KVM_MOCK void kvm_mock_alternatives(struct kvm_mock_pattern *p);

/* One byte, class, assertion or group. */
KVM_MOCK void kvm_mock_atom(struct kvm_mock_pattern *p)
{
	const int c = (unsigned char)*p->at++;
	unsigned char set[32] = {0};
	int byte = c;

	if (c == '(') {
		int group = -1;

		if (p->end - p->at >= 2 && p->at[0] == '?' && p->at[1] == ':')
			p->at += 2;
		else if (p->at < p->end && *p->at == '?')
			p->why = "a kind of group that this mock does not know";
		else
			group = p->regex->groups++;
		if (++p->depth > 16)
			p->why = "groups are nested too deeply";
		if (group >= 0 && group < KVM_MOCK_GROUPS)
			kvm_mock_emit(p, KVM_STEP_SAVE, 2 * group, 0);
		if (!p->why)
			kvm_mock_alternatives(p);
		if (!p->why && (p->at >= p->end || *p->at++ != ')'))
			p->why = "unclosed group";
		if (group >= 0 && group < KVM_MOCK_GROUPS)
			kvm_mock_emit(p, KVM_STEP_SAVE, 2 * group + 1, 0);
		p->depth--;
		return;
	}
	if (c == '^' || c == '$') {
		kvm_mock_emit(p, c == '^' ? KVM_STEP_BEGIN : KVM_STEP_END, 0, 0);
		return;
	}
	if (c == '*' || c == '+' || c == '?' || c == '{') {
		p->why = "repetition operator missing expression";
		return;
	}
	if (c == '\\') {
		static const char names[] = "bBAz";
		static const enum kvm_mock_step_kind kinds[] = {KVM_STEP_WORD, KVM_STEP_NO_WORD, KVM_STEP_BEGIN, KVM_STEP_END};
		const char *known;

		if (p->at >= p->end) {
			p->why = "incomplete escape sequence";
			return;
		}
		known = *p->at ? strchr(names, *p->at) : NULL;
		if (known) {
			p->at++;
			kvm_mock_emit(p, kinds[known - names], 0, 0);
			return;
		}
		if (kvm_mock_class(set, *p->at)) {
			p->at++;
			byte = -1;
		} else if ((byte = kvm_mock_escaped(p)) < 0) {
			return;
		}
	} else if (c == '[') {
		kvm_mock_bracket(p, set);
		byte = -1;
	} else if (c == '.') {
		kvm_mock_add(set, 0, 255);
		set['\n' >> 3] &= (unsigned char)~(1 << ('\n' & 7));
		byte = -1;
	}
	if (byte >= 0) {
		const bool is_letter = (byte | 32) >= 'a' && (byte | 32) <= 'z';

		kvm_mock_add(set, byte, byte);
		if (p->any_case && is_letter)
			kvm_mock_add(set, byte ^ 32, byte ^ 32);
	}
	memcpy(p->regex->step[kvm_mock_emit(p, KVM_STEP_SET, 0, 0)].set, set, sizeof set);
}

/* A decimal number of a repetition's bounds, or -1. */
KVM_MOCK int kvm_mock_bound(struct kvm_mock_pattern *p)
{
	int bound = -1;

	while (p->at < p->end && *p->at >= '0' && *p->at <= '9') {
		bound = (bound < 0 ? 0 : bound) * 10 + (*p->at++ - '0');
		if (bound > KVM_MOCK_STEPS)
			p->why = "it is too large";
		if (p->why)
			return -1;
	}
	return bound;
}

/* An atom as often as is said behind it: its program is there for each time. */
KVM_MOCK void kvm_mock_repeated(struct kvm_mock_pattern *p)
{
	const char *const atom = p->at;
	const int begin = p->regex->steps, groups = p->regex->groups;
	int least = 1, most = 1, splits[KVM_MOCK_STEPS / 8], split_count = 0;
	bool is_lazy = false;
	const char *behind;

	kvm_mock_atom(p);
	if (p->why || p->at >= p->end || !strchr("*+?{", *p->at) || !*p->at)
		return;
	switch (*p->at++) {
	case '*':
		least = 0, most = -1;
		break;
	case '+':
		most = -1;
		break;
	case '?':
		least = 0;
		break;
	default:
		least = most = kvm_mock_bound(p);
		if (p->at < p->end && *p->at == ',') {
			p->at++;
			most = kvm_mock_bound(p);
		}
		if (least < 0 || (most >= 0 && most < least) || p->at >= p->end || *p->at++ != '}')
			p->why = p->why ? p->why : "a repetition that this mock does not know";
	}
	if (p->at < p->end && *p->at == '?') {
		p->at++;
		is_lazy = true;
	}
	if (p->at < p->end && *p->at && strchr("*+?{", *p->at))
		p->why = "a repetition of a repetition, which this mock does not know";
	behind = p->at;
	p->regex->steps = begin;
	for (int i = 0; i < least && !p->why; i++) {
		p->at = atom;
		p->regex->groups = groups;
		kvm_mock_atom(p);
	}
	for (int i = least; (most < 0 ? i == least : i < most) && !p->why; i++) {
		const int split = kvm_mock_emit(p, KVM_STEP_SPLIT, 0, 0);

		if (split_count == (int)(sizeof splits / sizeof *splits)) {
			p->why = "it is too large";
			return;
		}
		splits[split_count++] = split;
		p->at = atom;
		p->regex->groups = groups;
		kvm_mock_atom(p);
		if (most < 0)
			kvm_mock_emit(p, KVM_STEP_JUMP, split, 0);
	}
	for (int i = 0; i < split_count; i++) {
		struct kvm_mock_step *split = &p->regex->step[splits[i]];

		split->to = is_lazy ? p->regex->steps : splits[i] + 1;
		split->other = is_lazy ? splits[i] + 1 : p->regex->steps;
	}
	if (most == 0) {
		/* None at all; its groups have their numbers. */
		p->at = atom;
		p->regex->groups = groups;
		kvm_mock_atom(p);
		p->regex->steps = begin;
	}
	p->at = behind;
}

KVM_MOCK void kvm_mock_alternatives(struct kvm_mock_pattern *p)
{
	int ends[256], count = 0;

	for (;;) {
		/* Says that there is another one, if there is. */
		const int begin = kvm_mock_emit(p, KVM_STEP_JUMP, p->regex->steps + 1, 0);

		while (p->at < p->end && *p->at != '|' && *p->at != ')' && !p->why)
			kvm_mock_repeated(p);
		if (p->why || p->at >= p->end || *p->at != '|')
			break;
		if (count == (int)(sizeof ends / sizeof *ends)) {
			p->why = "it is too large";
			break;
		}
		ends[count++] = kvm_mock_emit(p, KVM_STEP_JUMP, 0, 0);
		p->regex->step[begin].kind = KVM_STEP_SPLIT;
		p->regex->step[begin].other = p->regex->steps;
		p->at++;
	}
	while (count > 0)
		p->regex->step[ends[--count]].to = p->regex->steps;
}

KVM_MOCK void kvm_mock_regex_drop(struct kvm_mock_regex *regex)
{
	if (regex)
		free(regex->step);
	free(regex);
}

KVM_MOCK long kvm_mock_regex_compile(const char *pattern, size_t len)
{
	struct kvm_mock_pattern p = {pattern, pattern + len, NULL, false, 0, NULL};
	int number = 0;

	while (number < KVM_MOCK_MOST_REGEXES && kvm_mock_regexes[number])
		number++;
	if (number == KVM_MOCK_MOST_REGEXES)
		return -ENOSPC;
	if (len > KVM_MOCK_LONGEST_PATTERN)
		return -E2BIG;
	p.regex = (struct kvm_mock_regex *)calloc(1, sizeof *p.regex);
	if (!p.regex || !(p.regex->step = (struct kvm_mock_step *)calloc(KVM_MOCK_STEPS + 1, sizeof *p.regex->step)))
		abort();
	if (len >= 4 && !memcmp(pattern, "(?i)", 4)) {
		p.any_case = true;
		p.at += 4;
	}
	p.regex->groups = 1;
	kvm_mock_emit(&p, KVM_STEP_SAVE, 0, 0);
	kvm_mock_alternatives(&p);
	if (!p.why && p.at < p.end)
		p.why = "unopened group";
	kvm_mock_emit(&p, KVM_STEP_SAVE, 1, 0);
	kvm_mock_emit(&p, KVM_STEP_MATCH, 0, 0);
	if (p.why) {
		fprintf(stderr, "regex_compile: %s\n", p.why);
		kvm_mock_regex_drop(p.regex);
		return !strcmp(p.why, "it is too large") ? -E2BIG : -EINVAL;
	}
	kvm_mock_regexes[number] = p.regex;
	return number + 1;
}

KVM_MOCK struct kvm_mock_regex *kvm_mock_regex_of(uintptr_t number)
{
	return number >= 1 && number <= KVM_MOCK_MOST_REGEXES ? kvm_mock_regexes[number - 1] : NULL;
}

KVM_MOCK long kvm_mock_regex_free(uintptr_t number)
{
	if (!kvm_mock_regex_of(number))
		return -EINVAL;
	kvm_mock_regex_drop(kvm_mock_regexes[number - 1]);
	kvm_mock_regexes[number - 1] = NULL;
	return 0;
}

/* ------------------------------------------------------------------ matching */

/* What is still to be tried: a step at a place, or a saved place to be put back. */
struct kvm_mock_try {
	int step;
	long at;
};

KVM_MOCK bool kvm_mock_is_word(const char *subject, size_t len, size_t at)
{
	unsigned char set[32] = {0};

	kvm_mock_class(set, 'w');
	return at < len && kvm_mock_has(set, (unsigned char)subject[at]);
}

/* Whether it matches from `at` on. Each step is tried once at each place, over all beginnings: `seen` has a bit for both. */
KVM_MOCK bool kvm_mock_match_at(const struct kvm_mock_regex *regex, const char *subject, size_t len, size_t from,
				unsigned char *seen, long *groups)
{
	size_t room = 256, count = 0;
	struct kvm_mock_try *stack = (struct kvm_mock_try *)malloc(room * sizeof *stack);
	bool matches = false;

	if (!stack)
		abort();
	for (int i = 0; i < 2 * KVM_MOCK_GROUPS; i++)
		groups[i] = -1;
	stack[count].step = 0;
	stack[count++].at = (long)from;
	while (count > 0 && !matches) {
		int at_step = stack[--count].step;
		size_t at = (size_t)stack[count].at;

		if (at_step < 0) {
			groups[-at_step - 1] = stack[count].at;
			continue;
		}
		for (;;) {
			const struct kvm_mock_step *const step = &regex->step[at_step];
			const size_t bit = at * (size_t)regex->steps + (size_t)at_step;
			bool goes_on = true;

			if (seen[bit >> 3] >> (bit & 7) & 1)
				break;
			seen[bit >> 3] |= (unsigned char)(1 << (bit & 7));
			if (count + 2 > room) {
				stack = (struct kvm_mock_try *)realloc(stack, (room *= 2) * sizeof *stack);
				if (!stack)
					abort();
			}
			at_step++;
			switch (step->kind) {
			case KVM_STEP_SET:
				goes_on = at < len && kvm_mock_has(step->set, (unsigned char)subject[at]);
				at++;
				break;
			case KVM_STEP_SPLIT:
				stack[count].step = step->other;
				stack[count++].at = (long)at;
				at_step = step->to;
				break;
			case KVM_STEP_JUMP:
				at_step = step->to;
				break;
			case KVM_STEP_SAVE:
				stack[count].step = -step->to - 1;
				stack[count++].at = groups[step->to];
				groups[step->to] = (long)at;
				break;
			case KVM_STEP_BEGIN:
				goes_on = at == 0;
				break;
			case KVM_STEP_END:
				goes_on = at == len;
				break;
			case KVM_STEP_WORD:
			case KVM_STEP_NO_WORD:
				goes_on = ((at > 0 && kvm_mock_is_word(subject, len, at - 1)) != kvm_mock_is_word(subject, len, at)) ==
					  (step->kind == KVM_STEP_WORD);
				break;
			case KVM_STEP_MATCH:
				matches = true;
				goes_on = false;
			}
			if (!goes_on)
				break;
		}
	}
	free(stack);
	return matches;
}

/* The first match from a place on: where its groups are, or -1. */
KVM_MOCK bool kvm_mock_search(const struct kvm_mock_regex *regex, const char *subject, size_t len, size_t from, long *groups)
{
	unsigned char *const seen = (unsigned char *)calloc(((len + 2) * (size_t)regex->steps >> 3) + 1, 1);
	bool matches = false;

	if (!seen)
		abort();
	for (; from <= len && !matches; from++)
		matches = kvm_mock_match_at(regex, subject, len, from, seen, groups);
	free(seen);
	return matches;
}

KVM_MOCK long kvm_mock_regex_match(uintptr_t number, const char *subject, size_t len)
{
	const struct kvm_mock_regex *const regex = kvm_mock_regex_of(number);
	long groups[2 * KVM_MOCK_GROUPS];

	if (!regex)
		return -EINVAL;
	if (len > KVM_MOCK_LONGEST_SUBJECT)
		return -E2BIG;
	return kvm_mock_search(regex, subject, len, 0, groups);
}

/* ------------------------------------------------------------------ substitution */

struct kvm_mock_text {
	char *data;
	size_t len;
	bool too_long;
};

KVM_MOCK void kvm_mock_more(struct kvm_mock_text *text, const char *data, size_t len)
{
	if (text->too_long || len > KVM_MOCK_LONGEST_SUBJECT - text->len) {
		text->too_long = true;
		return;
	}
	if (len > 0)
		memcpy(text->data + text->len, data, len);
	text->len += len;
}

/* What takes a match's place. */
KVM_MOCK void kvm_mock_expand(struct kvm_mock_text *text, const char *subject, const char *with, size_t len, const long *groups)
{
	for (size_t i = 0; i < len; i++) {
		int group;

		if (with[i] != '\\' || i + 1 == len) {
			kvm_mock_more(text, &with[i], 1);
			continue;
		}
		i++;
		group = with[i] >= '0' && with[i] <= '9' ? with[i] - '0' : -1;
		if (group < 0)
			kvm_mock_more(text, &with[i], 1);
		else if (groups[2 * group] >= 0 && groups[2 * group + 1] >= 0)
			kvm_mock_more(text, subject + groups[2 * group], (size_t)(groups[2 * group + 1] - groups[2 * group]));
	}
}

/* The result, whose text is to be freed; how many matches there were, or a negative errno. */
KVM_MOCK long kvm_mock_substitute(uintptr_t number, const char *subject, size_t len, const char *with, size_t with_len,
				  bool all, struct kvm_mock_text *result)
{
	const struct kvm_mock_regex *const regex = kvm_mock_regex_of(number);
	long groups[2 * KVM_MOCK_GROUPS], matches = 0, last = -1;
	size_t done = 0, from = 0;

	memset(result, 0, sizeof *result);
	if (!regex)
		return -EINVAL;
	if (len > KVM_MOCK_LONGEST_SUBJECT || with_len > KVM_MOCK_LONGEST_SUBJECT)
		return -E2BIG;
	if (!(result->data = (char *)malloc(KVM_MOCK_LONGEST_SUBJECT)))
		abort();
	while (from <= len && (all || matches == 0) && kvm_mock_search(regex, subject, len, from, groups)) {
		/* An empty one right behind the one before is none. */
		if (groups[0] == groups[1] && groups[1] == last) {
			from++;
			continue;
		}
		matches++;
		kvm_mock_more(result, subject + done, (size_t)groups[0] - done);
		kvm_mock_expand(result, subject, with, with_len, groups);
		done = from = (size_t)(last = groups[1]);
	}
	kvm_mock_more(result, subject + done, len - done);
	return result->too_long ? -E2BIG : matches;
}

KVM_MOCK long kvm_mock_regex_subst(uintptr_t number, const struct kvm_regex_subst *what, uintptr_t flags)
{
	struct kvm_mock_text result = {NULL, 0, false};
	long got = -EINVAL;

	if (what->size == sizeof *what && flags <= KVM_REGEX_ALL)
		got = kvm_mock_substitute(number, what->subject, what->len, what->with, what->with_len, flags, &result);
	if (got >= 0)
		got = what->out && result.len > what->room ? -EMSGSIZE : (long)result.len;
	if (got > 0 && what->out)
		memcpy(what->out, result.data, result.len);
	free(result.data);
	return got;
}

KVM_MOCK long kvm_mock_regex_copyto(uintptr_t number, const struct kvm_regex_copyto *what, uintptr_t flags)
{
	struct kvm_mock_text value = {NULL, 0, false};
	const char *line = NULL;
	long got = -EINVAL;

	if (!kvm_mock.serving || (kvm_mock.begun && what->to == KVM_RESPONSE))
		return -EPERM;
	if (what->size != sizeof *what || flags > KVM_REGEX_ALL || !kvm_mock_regex_of(number))
		return got;
	line = kvm_mock_line(what->from, what->name, what->name_len);
	if (!line)
		return 0;
	line += what->name_len + 1;
	line += strspn(line, " \t");
	got = kvm_mock_substitute(number, line, strlen(line), what->with, what->with_len, flags, &value);
	if (got > 0 && value.len > 0) {
		const size_t len = what->to_name_len + 2 + value.len;
		char *const field = (char *)malloc(len);

		if (!field)
			abort();
		memcpy(field, what->to_name, what->to_name_len);
		memcpy(field + what->to_name_len, ": ", 2);
		memcpy(field + what->to_name_len + 2, value.data, value.len);
		got = kvm_mock_change(what->to, field, len, false);
		free(field);
	} else if (got > 0) {
		got = 0;
	}
	free(value.data);
	return got;
}

#endif /* KVM_MOCK_REGEX_H */
