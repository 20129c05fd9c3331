package job

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// noIndex is the completion index of pods that have none.
const noIndex = -1

// interval is a run of indexes, both ends included.
type interval struct{ first, last int }

// intervals are indexes in order, as status.completedIndexes writes them.
type intervals []interval

// parseIndexes reads "1,3-5"; what is beyond completions or makes no sense is
// left out.
func parseIndexes(text string, completions int) (out intervals) {
	for _, part := range strings.Split(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		if first >= completions {
			break
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(to); err != nil || last < first {
				continue
			}
		}
		out = out.add(interval{first, min(last, completions-1)})
	}
	return out
}

// add appends an interval that does not begin before the last one.
func (in intervals) add(i interval) intervals {
	if n := len(in); n > 0 && i.first <= in[n-1].last+1 {
		in[n-1].last = max(in[n-1].last, i.last)
		return in
	}
	return append(in, i)
}

// union gives the indexes of both.
func (in intervals) union(other intervals) (out intervals) {
	all := slices.SortedFunc(slices.Values(append(slices.Clone(in), other...)), func(a, b interval) int { return cmp.Compare(a.first, b.first) })
	for _, i := range all {
		out = out.add(i)
	}
	return out
}

// with gives in and single indexes.
func (in intervals) with(indexes map[int]bool) intervals {
	more := make(intervals, 0, len(indexes))
	for i := range indexes {
		more = append(more, interval{i, i})
	}
	return in.union(more)
}

func (in intervals) total() (n int) {
	for _, i := range in {
		n += i.last - i.first + 1
	}
	return n
}

func (in intervals) has(index int) bool {
	return slices.ContainsFunc(in, func(i interval) bool { return i.first <= index && index <= i.last })
}

// overlap is how many indexes both have.
func (in intervals) overlap(other intervals) (n int) {
	for _, a := range in {
		for _, b := range other {
			n += max(0, min(a.last, b.last)-max(a.first, b.first)+1)
		}
	}
	return n
}

func (in intervals) String() string {
	var parts []string
	for _, i := range in {
		switch i.last - i.first {
		case 0:
			parts = append(parts, strconv.Itoa(i.first))
		case 1:
			parts = append(parts, strconv.Itoa(i.first), strconv.Itoa(i.last))
		default:
			parts = append(parts, strconv.Itoa(i.first)+"-"+strconv.Itoa(i.last))
		}
	}
	return strings.Join(parts, ",")
}

// missing gives the first count indexes below completions that are not in in.
func (in intervals) missing(count, completions int) (out []int) {
	next := 0
	for _, i := range in {
		for ; next < i.first && next < completions && len(out) < count; next++ {
			out = append(out, next)
		}
		next = max(next, i.last+1)
	}
	for ; next < completions && len(out) < count; next++ {
		out = append(out, next)
	}
	return out
}

func indexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
}

// perIndex tells whether each index has a backoff limit of its own.
func perIndex(j *batchv1.Job) bool { return j.Spec.BackoffLimitPerIndex != nil }

func indexOf(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || n < 0 {
		return noIndex
	}
	return n
}

func indexesOf(pods []*corev1.Pod) map[int]bool {
	out := map[int]bool{}
	for _, p := range pods {
		if i := indexOf(p); i != noIndex {
			out[i] = true
		}
	}
	return out
}

// failures gives how often an index had failed before this pod, counted and
// ignored ones.
func failures(p *corev1.Pod) (counted, ignored int32) {
	read := func(annotation string) int32 {
		n, err := strconv.ParseInt(p.Annotations[annotation], 10, 32)
		if err != nil {
			return 0
		}
		return max(0, int32(n))
	}
	return read(batchv1.JobIndexFailureCountAnnotation), read(batchv1.JobIndexIgnoredFailureCountAnnotation)
}
