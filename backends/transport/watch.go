package transport

import (
	"context"
	"errors"
	"io"
	"time"
)

// The watchdog's bounds. A body that moves at all but slower than floor per
// window, averaged over the time spent waiting for it, is as dead as one that stands still.
const (
	stall       = 30 * time.Second
	dripWindow  = 60 * time.Second
	dripFloor   = 1 << 10 // bytes per window
	dripMessage = "the body arrives too slowly to be of use"
)

var (
	errStalled = errors.New("no progress")
	errDrip    = errors.New(dripMessage)
)

// watch ends an attempt that makes no progress. Its context is the
// attempt's; the timer cancels it with a cause.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func newWatch(ctx context.Context, limit time.Duration) *watch {
	w := &watch{}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errStalled) })
	return w
}

// expect allows d from now until the next sign of life.
func (w *watch) expect(d time.Duration) { w.timer.Reset(d) }

// pause stops the clock while nobody waits for the network.
func (w *watch) pause() { w.timer.Stop() }

// end releases the watch and aborts what still runs under its context.
func (w *watch) end(cause error) {
	w.timer.Stop()
	w.cancel(cause)
}

// sending is a request body under watch: every read of it is a sign that
// the bytes before it went out.
type sending struct {
	io.ReadCloser
	w     *watch
	after time.Duration // patience once all of it was sent
}

func (s *sending) Read(p []byte) (int, error) {
	s.w.pause()
	n, err := s.ReadCloser.Read(p)
	if err != nil {
		s.w.expect(s.after)
	} else {
		s.w.expect(stall)
	}
	return n, err
}
