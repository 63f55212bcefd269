package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// terminal reports whether f is one.
func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progress is a line that is rewritten in place; on anything but a terminal
// it is nothing. Safe for concurrent use.
type progress struct {
	w     io.Writer // nil: silent
	what  string
	now   func() time.Time
	start time.Time

	mu    sync.Mutex
	last  time.Time
	shown bool
}

const progressInterval = 200 * time.Millisecond

// progress starts a line on stderr.
func (a *app) progress(what string) *progress {
	p := &progress{what: what, now: a.now, start: a.now()}
	if !a.cfg.Quiet && isTerminal(a.stderr) {
		p.w = a.stderr
	}
	return p
}

// report shows how far it is; total may be unknown (not positive).
func (p *progress) report(done, total int64) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if now.Sub(p.last) < progressInterval && done != total {
		return
	}
	p.last, p.shown = now, true
	line := fmt.Sprintf("%s: %s", p.what, humanize.IBytes(uint64(done)))
	if total > 0 {
		line = fmt.Sprintf("%s: %3d%% of %s", p.what, done*100/total, humanize.IBytes(uint64(total)))
	}
	if took := now.Sub(p.start).Seconds(); took > 0.5 {
		line += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(float64(done)/took)))
	}
	fmt.Fprintf(p.w, "\r%s\x1b[K", line)
}

// done wipes the line.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.w = nil
}
