package backendtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sregistry/sregistry-fs/backends"
)

// Counting forwards s with its capabilities and counts what is asked of it.
func Counting(s backends.Set) (backends.Set, *Counts) {
	c := &Counts{calls: map[Method]int{}}
	return wrap(s, func(m Method, _ backends.Ref) call {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls[m]++
		return counted{c: c, method: m}
	}), c
}

// Counts is what a backend was asked so far. Safe for concurrent use.
type Counts struct {
	mu    sync.Mutex
	calls map[Method]int
	read  int64
	sent  int64
}

// Calls gives the calls of the methods, or of all of them if none is named. A
// listing counts each time it is walked.
func (c *Counts) Calls(methods ...Method) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for m, calls := range c.calls {
		if len(methods) == 0 || slices.Contains(methods, m) {
			n += calls
		}
	}
	return n
}

// BytesRead gives the bytes read from streams. Local files do not count.
func (c *Counts) BytesRead() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read
}

// BytesSent gives the bytes that pushes read from their sources.
func (c *Counts) BytesSent() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// Reset sets every count to zero.
func (c *Counts) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.calls)
	c.read, c.sent = 0, 0
}

// String gives the counts for a test's message: "Images 1, Open 2; 4096 bytes read".
func (c *Counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var calls []string
	for _, m := range slices.Sorted(maps.Keys(c.calls)) {
		calls = append(calls, fmt.Sprintf("%s %d", m, c.calls[m]))
	}
	if len(calls) == 0 {
		return "nothing asked"
	}
	return fmt.Sprintf("%s; %d bytes read, %d sent", strings.Join(calls, ", "), c.read, c.sent)
}

type counted struct {
	c      *Counts
	method Method
}

func (counted) before(context.Context) error { return nil }

func (counted) item(context.Context, backends.Record) error { return nil }

func (k counted) read(_ context.Context, _ []byte, _ int64, n int, err error) (int, error) {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.method == Push {
		k.c.sent += int64(n)
	} else {
		k.c.read += int64(n)
	}
	return n, err
}

func (counted) after(_ context.Context, _ backends.Record, err error) error { return err }
