package cache

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	// maxStall is how long a fetch may go without progress, retries included.
	maxStall = 30 * time.Second
	// progressStep is how many bytes count as progress: a body that drips
	// slower than one step in maxStall is given up.
	progressStep = 16 << 10
	// maxTries is how often a fetch is tried without any progress.
	maxTries = 4
	// stealAfter is the distance in chunks from which a reader does not wait
	// for a read-ahead to get there.
	stealAfter = 4
)

// slots bound the concurrent requests of a store. Those a reader waits for
// never queue behind read-ahead, nor behind whole downloads.
type slots struct{ demand, ahead, download chan struct{} }

func newSlots() slots {
	return slots{make(chan struct{}, 8), make(chan struct{}, maxAhead), make(chan struct{}, 8)}
}

func take(ctx context.Context, slot chan struct{}) (giveBack func(), err error) {
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// rangeFlight is a ranged fetch of the chunks from next to end; both are guarded
// by content.mu and change while it is under way. It belongs to no reader.
type rangeFlight struct {
	next, end int
	at        int  // the chunk that arrives; those from next on wait to be stored
	ahead     bool // nobody asked for it yet
	running   bool // it has a slot
}

// diskError marks a failure to write what was fetched.
type diskError struct{ error }

func (e diskError) Unwrap() error { return e.error }

// demand makes sure that chunks lo to hi are coming, with mu held: those that
// nobody brings get a flight of exactly them, and so do those that a
// read-ahead would bring too late.
func (c *content) demand(lo, hi int, sequential bool) error {
	if c.whole {
		return c.startDownload()
	}
	for i := lo; i <= hi; i++ {
		if c.state[i] != flying {
			continue
		}
		f := c.flightOf(i)
		if f != nil && f.ahead && (!f.running || !sequential && i-f.at > stealAfter) {
			c.free(i, f.end)
			f.end = i
		}
	}
	for i := lo; i <= hi; i++ {
		if c.state[i] != absent {
			continue
		}
		end := i + 1
		for end <= hi && c.state[end] == absent {
			end++
		}
		c.launch(i, end, false)
		i = end - 1
	}
	return nil
}

func (c *content) flightOf(i int) *rangeFlight {
	for _, f := range c.flights {
		if f.next <= i && i < f.end {
			return f
		}
	}
	return nil
}

// free makes the chunks that no flight will bring absent again, with mu held.
func (c *content) free(from, to int) {
	for i := from; i < to; i++ {
		if c.state[i] == flying {
			c.state[i] = absent
		}
	}
}

func (c *content) launch(from, to int, ahead bool) {
	f := &rangeFlight{next: from, end: to, at: from, ahead: ahead}
	if !c.spawn(func() { c.fly(f) }) {
		return // the store closes, and its readers leave
	}
	for i := from; i < to; i++ {
		c.state[i] = flying
	}
	c.flights = append(c.flights, f)
	if ahead {
		c.ahead++
	}
}

func (c *content) fly(f *rangeFlight) {
	slot := c.s.slots.demand
	if f.ahead {
		slot = c.s.slots.ahead
	}
	giveBack, err := take(c.ctx, slot)
	if err == nil {
		c.mu.Lock()
		f.running = true
		c.mu.Unlock()
		err = c.transfer(f)
		giveBack()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights = slices.DeleteFunc(c.flights, func(g *rangeFlight) bool { return g == f })
	if f.ahead {
		c.ahead--
	}
	c.free(f.next, f.end)
	if err == nil {
		c.pump()
		return
	}
	c.cursors = nil // no more ahead of anybody on the strength of the past
	var disk diskError
	switch kind := backends.KindOf(err); {
	case errors.As(err, &disk):
		c.avoidDisk(disk.error)
		err = nil // the readers look again and go past the disk
	case c.ctx.Err() != nil:
		// who still waits leaves by the same context
	case kind == backends.Unsupported:
		c.whole = true
		err = nil
	case kind == backends.Stale:
		c.fail(err)
	}
	c.wake(f.next, f.end-1, err)
	if err == nil {
		c.wake(0, len(c.state), nil)
	}
}

// fail ends the fetching of this content for good, with mu held. Its partial
// file goes with the last reader, since no later process could complete it.
func (c *content) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
	c.discard = true
	c.wake(0, len(c.state), c.failed)
}

// transfer brings the flight's chunks, with a new range after each break.
func (c *content) transfer(f *rangeFlight) error {
	if !c.s.hasRoom() {
		return diskError{errNoRoom}
	}
	l := c.land(f.next)
	defer l.done()
	p := newPatience(c.ctx, c.rec.Ref)
	defer p.stop()
	for {
		c.mu.Lock()
		end := f.end
		c.mu.Unlock()
		if l.next() >= end {
			return nil
		}
		err := c.tryRange(p, f, l, end)
		err = firstError(l.store(f), err)
		if err == nil {
			continue
		}
		if err = p.again(err); err != nil {
			return c.readError(err)
		}
	}
}

// tryRange makes one request for the chunks from where l stands to end, and
// stores those that arrive, but for the last few, which stay in l.
func (c *content) tryRange(p *patience, f *rangeFlight, l *landing, end int) error {
	off := int64(l.next())*chunkSize + int64(l.have)
	st, err := c.s.opt.Backend.Ranges.OpenRange(p.ctx, c.rec, off, min(int64(end)*chunkSize, c.size)-off)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := c.pinTo(st); err != nil {
		return err
	}
	for i := l.next(); i < end; i++ {
		if err := l.read(p, st); err != nil {
			return err
		}
		if i == end-1 {
			if err := p.atEnd(st); err != nil {
				l.have = 0
				return err
			}
		}
		if c.s.room.full.Load() {
			l.full = 0
			return diskError{errNoRoom}
		}
		l.keep(checksum(l.rest()))
		c.mu.Lock()
		f.at = i + 1
		cut, wanted := f.at >= f.end, c.wanted(l.first, i)
		c.mu.Unlock()
		if cut {
			return nil // or a reader took the rest over
		}
		if l.due(wanted) {
			if err := l.store(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// put stores chunks in the partial file, making room once if the disk is full.
func (c *content) put(first int, p []byte, crcs []uint32) error {
	err := c.work.put(first, p, crcs)
	if isFull(err) && c.s.evict(c.ctx, c.s.opt.MaxBytes, reserve) == nil {
		err = c.work.put(first, p, crcs)
	}
	if err != nil {
		return diskError{err}
	}
	c.s.wrote(int64(len(p)))
	return nil
}

// pinTo refuses a stream of other bytes than the first one's.
func (c *content) pinTo(st *backends.Stream) error {
	if st.Size >= 0 && c.size >= 0 && st.Size != c.size {
		return backends.Errorf("read", c.rec.Ref, backends.Stale, "the size became %d, was %d", st.Size, c.size)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expectLocked(st.Digest)
	if st.Validator == "" {
		return nil
	}
	sum := validatorSum(st.Validator)
	if c.check.validator == ([32]byte{}) {
		c.check.validator = sum
		if c.work != nil {
			if err := c.work.setHeader(c.work.size, sum); err != nil {
				return diskError{err}
			}
		}
	}
	if c.check.validator != sum {
		return backends.Errorf("read", c.rec.Ref, backends.Stale, "the registry's validator changed")
	}
	return nil
}

// probe asks for one byte to learn the size.
func (c *content) probe() (int64, error) {
	p := newPatience(c.ctx, c.rec.Ref)
	defer p.stop()
	for {
		st, err := c.s.opt.Backend.Ranges.OpenRange(p.ctx, c.rec, 0, 1)
		if err == nil {
			size := st.Size
			var b [1]byte
			if _, err = p.fill(st, b[:], 0); err == nil {
				err = p.atEnd(st)
			}
			_ = st.Close()
			if err == nil {
				return size, nil
			}
		}
		if err = p.again(err); err != nil {
			return 0, c.readError(err)
		}
	}
}

// readRemote reads past the disk, for one reader.
func (c *content) readRemote(ctx context.Context, buf []byte, off int64) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	giveBack, err := take(ctx, c.s.slots.demand)
	if err != nil {
		return 0, err
	}
	defer giveBack()
	p := newPatience(ctx, c.rec.Ref)
	defer p.stop()
	have := 0
	for {
		st, err := c.s.opt.Backend.Ranges.OpenRange(p.ctx, c.rec, off+int64(have), int64(len(buf)-have))
		if err == nil {
			if err = c.pinTo(st); err == nil {
				if have, err = p.fill(st, buf, have); err == nil {
					if err = p.atEnd(st); err != nil {
						have = 0
					}
				}
			}
			_ = st.Close()
		}
		if err == nil {
			return len(buf), nil
		}
		if err = p.again(err); err != nil {
			return 0, c.readError(err)
		}
	}
}

// readError gives a failed fetch the meaning it has for a reader: an image
// that is gone is no missing name, since the name was opened.
func (c *content) readError(err error) error {
	if backends.KindOf(err) == backends.NotFound {
		return &backends.Error{Op: "read", Ref: c.rec.Ref, Kind: backends.Stale, Err: err}
	}
	return err
}

// patience bounds a fetch: its context ends when nothing moves for maxStall,
// and again refuses when a retry has no prospect.
type patience struct {
	ref    backends.Ref
	ctx    context.Context
	parent context.Context
	cancel context.CancelFunc
	watch  *time.Timer
	tries  int // since the last progress

	corrupt int // tries with a body that breaks its promise, in all
	from    int // bytes since the last progress
}

func newPatience(parent context.Context, ref backends.Ref) *patience {
	p := &patience{parent: parent, ref: ref}
	p.ctx, p.cancel = context.WithCancel(parent)
	p.watch = time.AfterFunc(maxStall, p.cancel)
	return p
}

func (p *patience) stop() {
	p.watch.Stop()
	p.cancel()
}

// read reads until buf is full, given that it holds have bytes already, or
// until the stream ends: io.EOF.
func (p *patience) read(r io.Reader, buf []byte, have int) (int, error) {
	for have < len(buf) {
		n, err := r.Read(buf[have:])
		have += n
		if p.from += n; p.from >= progressStep || have == len(buf) {
			p.from, p.tries = 0, 0
			p.watch.Reset(maxStall)
		}
		if err != nil && have < len(buf) {
			return have, err
		}
	}
	return have, nil
}

// fill is read where the end of the stream is an error.
func (p *patience) fill(r io.Reader, buf []byte, have int) (int, error) {
	have, err := p.read(r, buf, have)
	if err == io.EOF {
		err = backends.Errorf("read", p.ref, backends.Unavailable, "the body ended early")
	}
	return have, err
}

// atEnd refuses a body that has more bytes than it promised, and by reading
// to the end lets the connection be used again.
func (p *patience) atEnd(r io.Reader) error {
	var one [1]byte
	for range 100 {
		n, err := r.Read(one[:])
		switch {
		case n > 0:
			return backends.Errorf("read", p.ref, backends.Corrupt, "the body has more bytes than were asked for")
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return backends.Errorf("read", p.ref, backends.Unavailable, "the body does not end")
}

// again waits before a retry, or returns the error that ends the fetch.
func (p *patience) again(err error) error {
	if p.parent.Err() != nil {
		return p.parent.Err()
	}
	if p.ctx.Err() != nil {
		return backends.Errorf("read", p.ref, backends.Timeout, "no progress in %v", maxStall)
	}
	var disk diskError
	if errors.As(err, &disk) {
		return err
	}
	switch backends.KindOf(err) {
	case backends.Unavailable, backends.Timeout, backends.Other:
	case backends.Corrupt:
		// Such a body may bring many bytes each time: they are no progress.
		if p.corrupt++; p.corrupt >= maxTries {
			return err
		}
	default:
		return err // the registry has spoken; transport has retried what it may
	}
	if p.tries++; p.tries >= maxTries {
		return err
	}
	wait := 20 * time.Millisecond << (2 * (p.tries - 1))
	pause := time.NewTimer(wait/2 + rand.N(wait))
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-p.ctx.Done():
		return p.again(err)
	}
}
