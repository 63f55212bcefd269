package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

// readAt fills p, which lies within the image, from off.
func (c *content) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f := c.file.Load(); f != nil {
		return c.readWhole(f, p, off)
	}
	lo, hi := int(off/chunkSize), int((off+int64(len(p))-1)/chunkSize)
	w := &waiter{lo: lo, hi: hi, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters[w] = struct{}{}
	defer delete(c.waiters, w)
	sequential := c.touch(off, len(p))
	for {
		if f := c.file.Load(); f != nil {
			return c.readWhole(f, p, off)
		}
		if c.ended || c.ctx.Err() != nil {
			return 0, errStoreClosed("read", c.rec.Ref)
		}
		if c.allHere(lo, hi) {
			n, err := c.readHere(lo, hi, p, off)
			if err == nil {
				c.pump()
				return n, nil
			}
			continue // lost, or promoted meanwhile
		}
		if err := firstError(w.err, c.failed); err != nil {
			return 0, err
		}
		if !c.whole && c.avoiding() {
			c.mu.Unlock()
			n, err := c.readRemote(ctx, p, off)
			c.mu.Lock()
			if backends.KindOf(err) != backends.Unsupported {
				return n, err
			}
			c.whole = true
		}
		if err := c.demand(lo, hi, sequential); err != nil {
			return 0, err
		}
		c.pump()
		c.mu.Unlock()
		var err error
		select {
		case <-w.wake:
		case <-ctx.Done():
			err = ctx.Err()
		case <-c.ctx.Done():
		}
		c.mu.Lock()
		if err != nil {
			return 0, err
		}
	}
}

// readWhole reads from a file that has every byte.
func (c *content) readWhole(f *os.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if err == io.EOF { // somebody cut it: a short answer would become zeros
		return n, backends.Errorf("read", c.rec.Ref, backends.Stale, "the local file is shorter than it was")
	}
	if err != nil {
		return n, c.localError(err)
	}
	return n, nil
}

func (c *content) allHere(lo, hi int) bool {
	for i := lo; i <= hi; i++ {
		if c.state[i] < claimed {
			return false
		}
	}
	return true
}

// readHere reads chunks that are here, with mu held on entry and exit. On an
// error there is something to do again.
func (c *content) readHere(lo, hi int, p []byte, off int64) (int, error) {
	work := c.work.data // a later renew makes another file, and closes this one
	for i := lo; i <= hi; i++ {
		switch c.state[i] {
		case present:
			continue
		case claimed:
		default:
			return 0, errBadChunk // somebody else found it out
		}
		c.mu.Unlock()
		_, err := c.readChunk(work, i, nil)
		c.mu.Lock()
		if err != nil {
			return 0, err
		}
		i = lo - 1 // mu was released: look at all of them again
	}
	c.mu.Unlock()
	n, err := work.ReadAt(p, off)
	c.mu.Lock()
	if err != nil && !errors.Is(err, os.ErrClosed) {
		for i := lo; i <= hi; i++ {
			c.lose(i, err)
		}
	}
	return n, err
}

var errBadChunk = errors.New("a chunk in the cache is damaged")

// readChunk reads chunk i whole and compares its CRC, without mu. A chunk that is
// damaged is forgotten. buf may be nil.
func (c *content) readChunk(data *os.File, i int, buf []byte) ([]byte, error) {
	if buf == nil {
		b := c.s.buffers.Get().(*[chunkSize]byte)
		defer c.s.buffers.Put(b)
		buf = b[:]
	}
	c.mu.Lock()
	was, crc := c.state[i], c.crcs[i]
	c.mu.Unlock()
	if was < claimed {
		return nil, errBadChunk
	}
	buf = buf[:chunkLen(i, c.size)]
	_, err := data.ReadAt(buf, int64(i)*chunkSize)
	if errors.Is(err, os.ErrClosed) {
		return nil, err
	}
	if err == nil && checksum(buf) != crc {
		err = errBadChunk
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state[i] != was || c.crcs[i] != crc:
		return buf, err // somebody settled it meanwhile
	case err != nil:
		c.lose(i, err)
	default:
		c.state[i] = present
	}
	return buf, err
}

// lose forgets a chunk that cannot be read back, with mu held.
func (c *content) lose(i int, err error) {
	if c.state[i] < claimed {
		return
	}
	c.state[i] = absent
	c.missing++
	c.prefix = min(c.prefix, i)
	if c.losses++; c.losses == 1 {
		c.s.opt.Log.Warn("a damaged chunk in the cache is fetched again", "image", c.rec.Ref.String(), "chunk", i, "error", err)
	}
	if c.losses >= maxLosses && errors.Is(err, syscall.EIO) {
		c.avoidDisk(err)
	}
}

// fill fetches everything and waits until it is verified.
func (c *content) fill(ctx context.Context, report func(done, total int64)) error {
	if report == nil {
		report = func(int64, int64) {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fillers++
	defer func() { c.fillers-- }()
	w := &waiter{lo: 0, hi: len(c.state), wake: make(chan struct{}, 1)}
	c.waiters[w] = struct{}{}
	defer delete(c.waiters, w)
	for c.file.Load() == nil {
		err := firstError(w.err, c.failed, c.check.err)
		switch {
		case c.ended || c.ctx.Err() != nil:
			err = errStoreClosed("read", c.rec.Ref)
		case err == nil && c.missing > 0 && c.avoiding():
			err = c.localError(c.diskErr)
		case err == nil && c.missing > 0 && c.whole:
			err = c.startDownload()
		}
		if err != nil {
			return err
		}
		c.pump()
		done := min(int64(len(c.state)-c.missing)*chunkSize, c.size)
		c.mu.Unlock()
		report(done, c.size)
		select {
		case <-w.wake:
		case <-ctx.Done():
			err = ctx.Err()
		case <-c.ctx.Done():
		}
		c.mu.Lock()
		if err != nil {
			return err
		}
	}
	c.mu.Unlock()
	report(c.size, c.size)
	c.mu.Lock()
	return nil
}
