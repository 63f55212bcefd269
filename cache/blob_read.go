package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

// section waits for the n bytes at off, which lie within the image.
func (c *content) section(ctx context.Context, off int64, n int) (Section, error) {
	if f := c.file.Load(); f != nil {
		return Section{File: f}, nil
	}
	var got Section
	_, err := c.await(ctx, off, n, func(lo, hi int) (int, error) {
		if f := c.file.Load(); f != nil {
			got = Section{File: f}
			return n, nil
		}
		work := c.work.data
		if err := c.compare(work.File, lo, hi); err != nil {
			return 0, err
		}
		if !work.hold() {
			return 0, os.ErrClosed
		}
		got = Section{work.File, work}
		return n, nil
	}, func() (int, error) { return n, nil })
	return got, err
}

// readAt fills p, which lies within the image, from off.
func (c *content) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f := c.file.Load(); f != nil {
		return c.readWhole(f, p, off)
	}
	return c.await(ctx, off, len(p), func(lo, hi int) (int, error) {
		if f := c.file.Load(); f != nil {
			return c.readWhole(f, p, off)
		}
		return c.readHere(lo, hi, p, off)
	}, func() (int, error) { return c.readRemote(ctx, p, off) })
}

// await waits for n bytes at off. here uses them, with mu held on entry and exit:
// the whole file, or the chunks lo to hi; after an error from the latter there is
// something to do again. remote gets them past the disk, without mu.
func (c *content) await(ctx context.Context, off int64, n int, here func(lo, hi int) (int, error), remote func() (int, error)) (int, error) {
	lo, hi := int(off/chunkSize), int((off+int64(n)-1)/chunkSize)
	w := &waiter{lo: lo, hi: hi, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters[w] = struct{}{}
	defer delete(c.waiters, w)
	sequential := c.touch(off, n)
	for {
		if c.file.Load() != nil {
			return here(lo, hi)
		}
		if c.ended || c.ctx.Err() != nil {
			return 0, errStoreClosed("read", c.rec.Ref)
		}
		if c.allHere(lo, hi) {
			n, err := here(lo, hi)
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
			n, err := remote()
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
	if err := c.compare(work.File, lo, hi); err != nil {
		return 0, err
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

// compare looks at those of the chunks lo to hi that an earlier process
// wrote, with mu held on entry and exit.
func (c *content) compare(work *os.File, lo, hi int) error {
	for i := lo; i <= hi; i++ {
		switch c.state[i] {
		case present:
			continue
		case claimed:
		default:
			return errBadChunk // somebody else found it out
		}
		c.mu.Unlock()
		b := c.s.buffers.Get().(*[chunkSize]byte)
		_, err := c.readChunks(work, i, 1, b[:])
		c.s.buffers.Put(b)
		c.mu.Lock()
		if err != nil {
			return err
		}
		i = lo - 1 // mu was released: look at all of them again
	}
	return nil
}

var errBadChunk = errors.New("a chunk in the cache is damaged")

// readChunks reads n chunks from first on into buf, without mu, and compares
// their CRCs. One that is damaged is forgotten. There are at most landingChunks.
func (c *content) readChunks(data *os.File, first, n int, buf []byte) ([]byte, error) {
	var was [landingChunks]chunkState
	var crcs [landingChunks]uint32
	c.mu.Lock()
	copy(was[:n], c.state[first:])
	copy(crcs[:n], c.crcs[first:])
	c.mu.Unlock()
	for _, state := range was[:n] {
		if state < claimed {
			return nil, errBadChunk
		}
	}
	buf = buf[:(n-1)*chunkSize+chunkLen(first+n-1, c.size)]
	got, failed := data.ReadAt(buf, int64(first)*chunkSize)
	if errors.Is(failed, os.ErrClosed) {
		return nil, failed
	}
	var bad [landingChunks]error
	for k := range n {
		p := buf[k*chunkSize:][:chunkLen(first+k, c.size)]
		switch {
		case failed != nil && k*chunkSize+len(p) > got:
			bad[k] = failed
		case checksum(p) != crcs[k]:
			bad[k] = errBadChunk
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range n {
		i := first + k
		switch {
		case c.state[i] != was[k] || c.crcs[i] != crcs[k]:
			// somebody settled it meanwhile
		case bad[k] != nil:
			c.lose(i, bad[k])
		default:
			c.state[i] = present
		}
	}
	return buf, firstError(bad[:n]...)
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
