package cache

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// chunkState says where one chunk of an image is.
type chunkState uint8

const (
	absent  chunkState = iota
	flying             // a flight is going to bring it
	claimed            // an earlier process wrote it; its CRC was not compared yet
	present            // here
)

const (
	// graceTime is how long flights go on after the last handle was closed.
	graceTime = 10 * time.Second
	// diskRetry is how long a failing disk is left alone.
	diskRetry = 30 * time.Second
	// maxLosses is how many chunks may turn out damaged before the disk is not trusted.
	maxLosses = 64
)

// content is what the Blobs of one version of an image share. It lives from
// the first Open until the last reference is gone and nothing is under way for it.
type content struct {
	s      *Store
	key    string
	rec    backends.Record
	ctx    context.Context // of everything done for it
	cancel context.CancelFunc
	ready  chan struct{} // closed once size is settled, or err is set
	err    error         // why Open failed
	gone   chan struct{} // closed once its files are closed

	// Guarded by Store.mu.
	refs    int
	closing bool // nobody may join
	grace   *time.Timer

	// file is the verified blob or the local file; set once, closed at the end.
	file atomic.Pointer[os.File]

	mu       sync.Mutex // after Store.mu; not held across the network
	size     int64      // does not change once ready is closed
	settled  bool       // ready is closed
	ended    bool
	busy     int       // goroutines at work for it
	work     *workfile // nil without a partial file
	state    []chunkState
	crcs     []uint32 // of claimed and present chunks
	missing  int      // chunks that are absent or flying
	prefix   int      // chunks [0, prefix) are here
	digest   backends.Digest
	waiters  map[*waiter]struct{}
	flights  []*rangeFlight
	ahead    int // flights that nobody asked for
	cursors  []*cursor
	fillers  int       // callers of Wait
	direct   time.Time // until then, the disk is not written to
	diskErr  error     // the reason
	losses   int
	failed   error // no byte that is missing will come any more
	discard  bool  // the partial file is of no use to anybody
	whole    bool  // the registry has no ranges of it
	download downloadState
	check    checkState
}

// waiter is a reader that waits for chunks lo to hi.
type waiter struct {
	lo, hi int
	wake   chan struct{} // 1
	err    error         // of a fetch that was to bring some of them
}

func newContent(s *Store, key string, rec backends.Record) *content {
	c := &content{
		s: s, key: key, rec: rec, size: -1,
		ready: make(chan struct{}), gone: make(chan struct{}),
		waiters: make(map[*waiter]struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.expectLocked(rec.Digest)
	return c
}

// spawn runs f for the content, with mu held. Nothing runs once the store closes.
func (c *content) spawn(f func()) bool {
	c.busy++
	ok := c.s.tasks.run(func() {
		defer c.release(0, 1)
		f()
	})
	if !ok {
		c.busy--
	}
	return ok
}

// release gives up references or goroutines, and ends the content with the last.
func (c *content) release(refs, busy int) {
	c.s.mu.Lock()
	c.mu.Lock()
	c.refs -= refs
	c.busy -= busy
	last := c.refs == 0 && c.busy == 0
	if last {
		c.closing = true
	} else if c.refs == 0 && c.grace == nil && !c.download.streaming && c.missing > 0 {
		c.grace = time.AfterFunc(graceTime, c.cancel)
	}
	c.mu.Unlock()
	c.s.mu.Unlock()
	if last {
		c.end()
	}
}

// end closes the content's files, once.
func (c *content) end() {
	c.s.mu.Lock()
	c.mu.Lock()
	again := c.ended
	c.ended, c.closing = true, true
	work, drop := c.work, c.discard || c.missing == len(c.state)
	if c.grace != nil {
		c.grace.Stop()
	}
	c.mu.Unlock()
	c.s.mu.Unlock()
	if again {
		return
	}
	c.cancel()
	if f := c.file.Load(); f != nil {
		_ = f.Close() // read only: nothing to lose
	}
	if work != nil {
		var err error
		if drop {
			err = work.discard()
		} else {
			err = work.close()
		}
		if err != nil {
			c.s.opt.Log.Warn("a partial file was not closed well", "image", c.rec.Ref.String(), "error", err)
		}
	}
	c.s.mu.Lock()
	delete(c.s.contents, c.key)
	c.s.mu.Unlock()
	close(c.gone)
	if c.s.room.full.Load() {
		c.s.makeRoom() // it may go now
	}
}

// start finds out where the bytes are and settles the size.
func (c *content) start() {
	if err := c.begin(); err != nil {
		c.abort(err)
	}
}

// abort makes every Open that waits fail, and the next one begin anew.
func (c *content) abort(err error) {
	c.s.mu.Lock()
	c.mu.Lock()
	if !c.settled {
		c.settled, c.closing, c.err = true, true, err
		close(c.ready)
	}
	c.mu.Unlock()
	c.s.mu.Unlock()
}

func (c *content) begin() error {
	if done, err := c.openLocal(); done || err != nil {
		return err
	}
	if done, err := c.openBlob(); done || err != nil {
		return err
	}
	work, err := openWorkfile(c.s.disk, c.key)
	if isFull(err) && c.s.evict(c.ctx, c.s.opt.MaxBytes, reserve) == nil {
		work, err = openWorkfile(c.s.disk, c.key)
	}
	if err != nil {
		c.mu.Lock()
		c.avoidDisk(err)
		c.mu.Unlock()
	}
	size, known := c.rec.Size, map[int]uint32(nil)
	resumed := false
	if work != nil {
		if known, resumed = work.load(size); resumed {
			size, c.check.validator = work.size, work.validator
		}
	}
	whole := c.s.opt.Backend.Ranges == nil
	if size < 0 && !whole {
		size, err = c.probe()
		switch {
		case err == nil && size < 0, backends.KindOf(err) == backends.Unsupported:
			whole, err = true, nil
		case err != nil:
			return errors.Join(err, closeWork(work))
		}
	}
	if err := c.plausible(size); err != nil {
		return errors.Join(err, closeWork(work))
	}
	if work != nil && !resumed {
		if err := work.renew(size); err != nil {
			_ = work.discard() // it is the disk that fails, and says so below
			work = nil
			c.mu.Lock()
			c.avoidDisk(err)
			c.mu.Unlock()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.work, c.whole = work, whole
	if whole && work == nil {
		return c.localError(c.diskErr)
	}
	if size >= 0 {
		c.settle(size, known)
	}
	if whole && (size < 0 || c.missing > 0) {
		c.startDownload()
	}
	return nil
}

// plausible refuses a size that no image has.
func (c *content) plausible(size int64) error {
	if size <= maxSize {
		return nil
	}
	return backends.Errorf("open", c.rec.Ref, backends.Corrupt, "the registry states a size of %d bytes", size)
}

func closeWork(w *workfile) error {
	if w == nil {
		return nil
	}
	return w.discard()
}

// openLocal reads in place what is a file of this machine.
func (c *content) openLocal() (done bool, err error) {
	if c.s.opt.Backend.Local == nil {
		return false, nil
	}
	f, err := c.s.opt.Backend.Local.OpenLocal(c.ctx, c.rec)
	if err != nil {
		if backends.KindOf(err) == backends.Unsupported {
			err = nil
		}
		return false, err
	}
	fi, err := f.Stat()
	if err != nil {
		return false, errors.Join(c.localError(err), f.Close())
	}
	c.adopt(f, fi.Size(), backends.Digest{})
	return true, nil
}

// openBlob looks for the verified bytes: by what this version was found to be
// before, then by the digest that the registry states.
func (c *content) openBlob() (done bool, err error) {
	if digest, size, ok := c.s.disk.readLink(c.key); ok {
		if f, size, err := c.s.disk.openBlob(c.ctx, digest, size); err == nil {
			c.adopt(f, size, digest)
			return true, nil
		}
	}
	if c.rec.Digest.Algorithm == "sha256" {
		f, size, err := c.s.disk.openBlob(c.ctx, c.rec.Digest, -1)
		if err == nil {
			if err := c.s.disk.writeLink(c.key, c.rec.Digest, size); err != nil {
				c.s.opt.Log.Debug("a link to a blob was not written", "image", c.rec.Ref.String(), "error", err)
			}
			c.adopt(f, size, c.rec.Digest)
			return true, nil
		}
	}
	return false, c.ctx.Err()
}

// adopt makes f, which is whole, what every reader reads, and gives back the
// partial file that f takes the place of, if there was one.
func (c *content) adopt(f *os.File, size int64, digest backends.Digest) *workfile {
	c.mu.Lock()
	// In one step: a reader that finds no file finds the partial one.
	work := c.work
	c.work = nil
	c.file.Store(f)
	c.digest, c.check.running = digest, false
	if !c.settled {
		c.size, c.settled = size, true
		close(c.ready)
	}
	c.wake(0, len(c.state), nil)
	c.mu.Unlock()
	if c.s.opt.Learn != nil && !digest.IsZero() && (digest != c.rec.Digest || size != c.rec.Size) {
		c.s.opt.Learn(c.rec, size, digest)
	}
	return work
}

// settle fixes the size and what of it is here, with mu held.
func (c *content) settle(size int64, known map[int]uint32) {
	n := chunkCount(size)
	c.size = size
	c.state, c.crcs, c.missing = make([]chunkState, n), make([]uint32, n), n
	for i, crc := range known {
		c.state[i], c.crcs[i] = claimed, crc
		c.missing--
	}
	c.settled = true
	close(c.ready)
	if c.rec.Size < 0 && c.s.opt.Learn != nil {
		c.spawn(func() { c.s.opt.Learn(c.rec, size, backends.Digest{}) })
	}
	c.advance()
}

func (c *content) expectDigest(d backends.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expectLocked(d)
}

// expectLocked adds a digest that the bytes must have.
func (c *content) expectLocked(d backends.Digest) {
	if d.NewHash() != nil && !slices.Contains(c.check.expect, d) {
		c.check.expect = append(c.check.expect, d)
	}
}

// arrived marks the chunks from first on as here, with mu held, and tells who
// waits.
func (c *content) arrived(first int, crcs []uint32) {
	for k, crc := range crcs {
		if c.state[first+k] < claimed {
			c.missing--
		}
		c.state[first+k], c.crcs[first+k] = present, crc
	}
	c.check.pace.note(time.Now(), len(crcs)*chunkSize)
	c.wake(first, first+len(crcs)-1, nil)
	c.advance()
}

// wanted reports whether a reader waits for one of chunks lo to hi, with mu held.
func (c *content) wanted(lo, hi int) bool {
	for w := range c.waiters {
		if w.lo <= hi && w.hi >= lo {
			return true
		}
	}
	return false
}

// advance moves the prefix on and the hash after it, with mu held.
func (c *content) advance() {
	for c.prefix < len(c.state) && c.state[c.prefix] >= claimed {
		c.prefix++
	}
	c.startCheck()
}

// wake tells the waiters of chunks lo to hi to look again, with mu held.
func (c *content) wake(lo, hi int, err error) {
	for w := range c.waiters {
		if w.lo > hi || w.hi < lo {
			continue
		}
		if err != nil && w.err == nil {
			w.err = err
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// avoidDisk stops writing for a while, with mu held.
func (c *content) avoidDisk(err error) {
	if c.diskErr == nil {
		c.s.opt.Log.Warn("reading on without caching", "image", c.rec.Ref.String(), "error", err)
	}
	c.diskErr, c.direct = err, c.s.opt.Now().Add(diskRetry)
}

// avoiding reports that missing bytes go past the disk, with mu held.
func (c *content) avoiding() bool {
	return c.work == nil || c.s.opt.Now().Before(c.direct)
}

// localError is a failure of this machine; its errno shows through.
func (c *content) localError(err error) error {
	return &backends.Error{Op: "read", Ref: c.rec.Ref, Err: err, Hint: "look at the cache directory: space, mode, disk"}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
