package transport

import (
	"math"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// parseContentRange reads "bytes first-last/total" (RFC 9110, 14.4). total is
// UnknownSize when it is "*". It is strict: ok means 0 ≤ first ≤ last, last <
// total where told, and no character besides.
func parseContentRange(s string) (first, last, total int64, ok bool) {
	unit, rest, found := strings.Cut(s, " ")
	if !found || !strings.EqualFold(unit, "bytes") {
		return 0, 0, 0, false
	}
	span, size, found := strings.Cut(rest, "/")
	if !found {
		return 0, 0, 0, false
	}
	from, to, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, 0, false
	}
	var ok1, ok2 bool
	first, ok1 = digits(from)
	last, ok2 = digits(to)
	if !ok1 || !ok2 || first > last {
		return 0, 0, 0, false
	}
	if size == "*" {
		return first, last, backends.UnknownSize, true
	}
	total, ok = digits(size)
	if !ok || last >= total {
		return 0, 0, 0, false
	}
	return first, last, total, true
}

// digits reads a decimal number of digits alone.
func digits(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 || n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
