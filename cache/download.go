package cache

import (
	"errors"
	"io"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	maxDownloads  = 3                // tries of one download, from byte 0 each
	downloadPause = 10 * time.Second // after a failure, before a reader may start another
)

// downloadState is the one stream of an image whose registry has no ranges,
// guarded by content.mu.
type downloadState struct {
	running   bool
	streaming bool  // it has a slot; before that it may be given up
	err       error // of the last download
	ended     time.Time
}

// startDownload begins the stream unless it runs, with mu held. Readers wait
// until it has passed them. It goes on when they leave, since its
// bytes were paid for and a restart would begin at 0.
func (c *content) startDownload() error {
	d := &c.download
	if d.running || c.failed != nil {
		return nil
	}
	if d.err != nil && c.s.opt.Now().Sub(d.ended) < downloadPause {
		return d.err
	}
	if c.work == nil {
		return c.localError(c.diskErr)
	}
	d.running, d.err = c.spawn(c.runDownload), nil
	return nil
}

func (c *content) runDownload() {
	giveBack, err := take(c.ctx, c.s.slots.download)
	if err == nil {
		c.mu.Lock()
		c.download.streaming = true
		c.mu.Unlock()
		err = c.downloadAll()
		giveBack()
	}
	var disk diskError
	if errors.As(err, &disk) {
		err = c.localError(disk.error)
	}
	c.mu.Lock()
	c.download = downloadState{err: err, ended: c.s.opt.Now()}
	settled := c.settled
	if settled {
		if backends.KindOf(err) == backends.Stale {
			c.fail(err)
		}
		c.wake(0, len(c.state), err)
	}
	c.mu.Unlock()
	if err != nil && !settled {
		c.abort(err)
	}
}

func (c *content) downloadAll() error {
	p := newPatience(c.ctx, c.rec.Ref)
	defer p.stop()
	for try := 1; ; try++ {
		err := c.tryDownload(p)
		if err == nil {
			return nil
		}
		if try < maxDownloads {
			err = p.again(err)
		}
		if err != nil {
			return c.readError(err)
		}
	}
}

// tryDownload streams the image once. Chunks that are here already must be the same.
func (c *content) tryDownload(p *patience) error {
	st, err := c.s.opt.Backend.Open(p.ctx, c.rec)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := c.pinTo(st); err != nil {
		return err
	}
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	if !settled && st.Size < 0 {
		return c.downloadUnsized(p, st)
	}
	if !settled {
		if err := c.plausible(st.Size); err != nil {
			return err
		}
		if err := c.work.setHeader(st.Size, c.check.validator); err != nil {
			return diskError{err}
		}
		c.mu.Lock()
		c.settle(st.Size, nil)
		c.mu.Unlock()
	}
	l := c.land(0)
	defer l.done()
	err = c.landAll(p, st, l)
	return firstError(l.store(nil), err)
}

// landAll stores the whole stream, but for the last chunks, which stay in l.
func (c *content) landAll(p *patience, st *backends.Stream, l *landing) error {
	n := chunkCount(c.size)
	for i := range n {
		if err := l.read(p, st); err != nil {
			return err
		}
		if i == n-1 {
			if err := p.atEnd(st); err != nil {
				return err
			}
		}
		c.mu.Lock()
		was, crc, whole := c.state[i], c.crcs[i], c.missing == 0
		wanted := c.wanted(l.first, i)
		c.mu.Unlock()
		if whole {
			l.full = 0
			return nil // from here on the file is the verification's
		}
		sum := checksum(l.rest())
		if was >= claimed && sum != crc {
			return backends.Errorf("read", c.rec.Ref, backends.Stale, "a second download has other bytes")
		}
		here := was == present
		if !here {
			l.keep(sum)
		}
		if here || l.due(wanted) {
			if err := l.store(nil); err != nil {
				return err
			}
		}
		if here {
			l.skip()
		}
	}
	return nil
}

// downloadUnsized streams an image whose size shows only at its end.
func (c *content) downloadUnsized(p *patience, st *backends.Stream) error {
	b := c.s.buffers.Get().(*[chunkSize]byte)
	defer c.s.buffers.Put(b)
	buf := b[:]
	known := make(map[int]uint32)
	var size int64
	for i := 0; ; i++ {
		n, err := p.read(st, buf, 0)
		if err != nil && err != io.EOF {
			return err
		}
		size += int64(n)
		if n > 0 {
			known[i] = checksum(buf[:n])
			if err := c.put(i, buf[:n], []uint32{known[i]}); err != nil {
				return err
			}
		}
		if n < len(buf) {
			break
		}
	}
	// An earlier try may have got further with other bytes.
	err := c.work.data.Truncate(size)
	if err == nil {
		err = c.work.setHeader(size, c.check.validator)
	}
	if err != nil {
		return diskError{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle(size, known)
	return nil
}
