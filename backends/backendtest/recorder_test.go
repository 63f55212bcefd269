package backendtest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

// recorder is a testing.TB that keeps what would fail a test.
type recorder struct {
	testing.TB // for what is not overridden: TempDir, Context, Name

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (r *recorder) fail(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, strings.TrimSuffix(text, "\n"))
}

func (r *recorder) Helper()                           {}
func (r *recorder) Log(...any)                        {}
func (r *recorder) Logf(string, ...any)               {}
func (r *recorder) Error(args ...any)                 { r.fail(fmt.Sprintln(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.fail(fmt.Sprintf(format, args...)) }
func (r *recorder) Fail()                             { r.fail("Fail") }
func (r *recorder) FailNow()                          { r.fail("FailNow"); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)                 { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) > 0
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// record runs f as a test and gives its failures.
func record(t *testing.T, f func(r *recorder)) []string {
	r := &recorder{TB: t}
	run := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	run(func() { f(r) })
	r.mu.Lock()
	cleanups := r.cleanups
	r.mu.Unlock()
	for _, f := range slices.Backward(cleanups) {
		run(f)
	}
	return r.failures
}

// memHarness is the harness of mem, with the backend that make gives for it.
func memHarness(make func(t testing.TB, r *mem.Registry) backends.Backend) Harness {
	return Harness{New: func(t testing.TB) Store {
		r := mem.New(mem.Options{})
		requests := 0
		return Store{
			Backend:  make(t, r),
			Seed:     func(ref backends.Ref, data []byte) error { r.Put(ref, data); return nil },
			Remove:   func(ref backends.Ref) error { r.Remove(ref); return nil },
			Freeze:   func(ref backends.Ref) error { r.Freeze(ref, true); return nil },
			Reopen:   func(t testing.TB) backends.Backend { return make(t, r) },
			Requests: func() int { requests++; return requests },
			Secrets:  []string{canary},
			Log:      func() string { return "" },
		}
	}}
}

// runPart runs one part of the suite and gives its failures; ran is false if
// the part was skipped.
func runPart(t *testing.T, name string, h Harness) (failures []string, ran bool) {
	failures = record(t, func(r *recorder) {
		for _, p := range parts() {
			if p.name != name {
				continue
			}
			s := newSession(r, h, backends.Probe)
			if p.lacks(s) == "" {
				ran = true
				p.run(s)
			}
		}
	})
	return failures, ran
}
