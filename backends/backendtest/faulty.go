package backendtest

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

// Fault is what one call of a method does wrong. The zero value of everything
// but Method is a call that succeeds, to let earlier calls pass.
type Fault struct {
	Method Method

	// Err is what the call fails with; without Late or After it fails at
	// once and the backend is not asked.
	Err error
	// Late lets the backend do its work before the call fails: the answer is
	// lost, the deed is done.
	Late bool
	// After lets a stream give, a push read, or a listing yield that many bytes or
	// records before it fails. What lies before is right.
	After int64
	// Short ends a stream with io.EOF after After bytes: a broken promise, to
	// see that the caller notices.
	Short bool
	// Flip changes the byte at After of a stream and goes on.
	Flip bool
	// Block waits, at the place where the fault happens, until it can
	// receive from Gate; with a nil Gate until the context ends, whose error
	// is then given. Afterwards Err, if any.
	Block bool
	Gate  <-chan struct{}
}

// Faulty forwards s with its capabilities and makes calls fail by script: the
// nth call of a method takes the nth fault of that method, and calls
// beyond the script succeed. When the test ends, a fault that did not happen
// fails it: a script that was not played out proves nothing.
func Faulty(t testing.TB, s backends.Set, script ...Fault) backends.Set {
	t.Helper()
	f := &faults{queue: map[Method][]*planned{}}
	var all []*planned
	for _, fault := range script {
		p := &planned{Fault: fault, fired: fault == Fault{Method: fault.Method}}
		f.queue[fault.Method] = append(f.queue[fault.Method], p)
		all = append(all, p)
	}
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, p := range all {
			if !p.fired {
				t.Errorf("fault %d of the script (%s: %v) did not happen", i+1, p.Method, p.Err)
			}
		}
	})
	return wrap(s, func(m Method, _ backends.Ref) call { return failing{f: f, p: f.next(m)} })
}

type faults struct {
	mu    sync.Mutex // guards the queues and every planned.fired
	queue map[Method][]*planned
}

type planned struct {
	Fault
	fired bool
}

// next takes the fault that the next call of m is planned to have; a call that
// is not in the script gets one that does nothing.
func (f *faults) next(m Method) *planned {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.queue[m]
	if len(q) == 0 {
		return &planned{fired: true}
	}
	f.queue[m] = q[1:]
	return q[0]
}

// failing is one call with its fault.
type failing struct {
	f *faults
	p *planned
}

// atOnce reports whether the fault lies before the backend is asked.
func (c failing) atOnce() bool {
	p := c.p
	return !p.Late && p.After == 0 && !p.Short && !p.Flip
}

// fire marks the fault as having happened and gives its error.
func (c failing) fire(ctx context.Context) error {
	c.f.mu.Lock()
	c.p.fired = true
	c.f.mu.Unlock()
	if c.p.Block {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.p.Gate: // a nil channel never comes
		}
	}
	return c.p.Err
}

func (c failing) planned() bool {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	return !c.p.fired
}

func (c failing) before(ctx context.Context) error {
	if !c.planned() || !c.atOnce() {
		return nil
	}
	return c.fire(ctx)
}

func (c failing) item(ctx context.Context, _ backends.Record) error {
	if !c.planned() || c.p.Late {
		return nil
	}
	c.f.mu.Lock()
	c.p.After--
	due := c.p.After < 0
	c.f.mu.Unlock()
	if !due {
		return nil
	}
	return c.fire(ctx)
}

func (c failing) read(ctx context.Context, p []byte, off int64, n int, err error) (int, error) {
	at := c.p.After - off // where in p the fault lies
	switch {
	case c.p.Late || at < 0 || c.p.After == 0 && c.atOnce():
		return n, err
	case c.p.Flip:
		if at < int64(n) && c.planned() {
			p[at] ^= 0xff
			return n, errors.Join(err, c.fire(ctx))
		}
		return n, err
	case at > int64(n) || at == int64(n) && err == nil:
		return n, err
	}
	// At the fault, or beyond it: give what lies before, and fail at once, also
	// when asked again.
	fired := c.fire(ctx)
	switch {
	case c.p.Short:
		return int(at), io.EOF
	case fired != nil:
		return int(at), fired
	}
	return n, err
}

func (c failing) after(ctx context.Context, _ backends.Record, err error) error {
	if err == nil && c.p.Late && c.planned() {
		return c.fire(ctx)
	}
	return err
}
