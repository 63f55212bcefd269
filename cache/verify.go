package cache

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	// hashStep is how many chunks the hash lets the prefix get ahead before it follows.
	hashStep = 64
	// While bytes come faster than hashLater per second, processors are what is
	// scarce, and the readers have them: the hash follows when all is here, or
	// when it is maxLag chunks behind, which the page cache may not hold any more.
	hashLater = 100 << 20
	maxLag    = 8192
	paceTime  = 20 * time.Millisecond
)

// pace tells how fast bytes arrive, from one look to the next.
type pace struct {
	since time.Time
	bytes int64
	fast  bool
}

func (p *pace) note(now time.Time, n int) {
	p.bytes += int64(n)
	took := now.Sub(p.since)
	if took < paceTime {
		return
	}
	p.fast = float64(p.bytes) > hashLater*took.Seconds()
	p.since, p.bytes = now, 0
}

// checkState is the verification of a content, guarded by content.mu except
// for hashes, which belong to the one goroutine that runs.
type checkState struct {
	expect    []backends.Digest // what the bytes must have
	validator [32]byte          // hash of what every stream must have; zero until known
	running   bool
	pos       int // chunks hashed
	hashes    map[string]hash.Hash
	fresh     bool  // the image was fetched anew after a wrong digest
	err       error // why a whole image could not be promoted
	pace      pace
}

// hashNow reports whether there are chunks to hash at this moment, with mu held.
func (c *content) hashNow() bool {
	lag := c.prefix - c.check.pos
	return lag > 0 && (c.missing == 0 || c.fillers > 0 || !c.check.pace.fast || lag > maxLag)
}

// startCheck starts hashing once it is worth it, with mu held. The readers do
// not wait for it: the goroutine follows the prefix through the page cache.
func (c *content) startCheck() {
	v := &c.check
	if v.running || v.err != nil || c.work == nil || c.missing > 0 && (c.prefix-v.pos < hashStep || !c.hashNow()) {
		return
	}
	v.running = c.spawn(c.runCheck)
}

func (c *content) runCheck() {
	b := c.s.landings.Get().(*[landingChunks * chunkSize]byte)
	defer c.s.landings.Put(b)
	v := &c.check
	for {
		c.mu.Lock()
		if v.hashes == nil {
			v.hashes = map[string]hash.Hash{"sha256": sha256.New()}
			for _, d := range v.expect {
				v.hashes[d.Algorithm] = d.NewHash()
			}
		}
		i, n, work := v.pos, min(c.prefix-v.pos, landingChunks), c.work
		if c.ctx.Err() != nil || !c.hashNow() {
			whole := c.missing == 0 && c.ctx.Err() == nil
			v.running = whole
			c.mu.Unlock()
			if whole {
				c.complete()
			}
			return
		}
		c.mu.Unlock()
		p, err := c.readChunks(work.data.File, i, n, b[:])
		if err == nil {
			for _, h := range v.hashes {
				_, _ = h.Write(p) // never fails
			}
		}
		c.mu.Lock()
		if err == nil {
			v.pos += n
		} else {
			c.pump() // a lost chunk comes again if somebody waits for it
			c.wake(i, i+n-1, nil)
		}
		c.mu.Unlock()
	}
}

// complete compares the digests of an image whose every byte is here.
func (c *content) complete() {
	c.mu.Lock()
	expect := c.check.expect
	c.mu.Unlock()
	sum := backends.SHA256(c.check.hashes["sha256"].Sum(nil))
	for _, want := range expect {
		got, err := c.digestOf(want)
		if err != nil {
			c.checked(c.localError(err))
			return
		}
		if got != want {
			c.mismatch(want, got)
			return
		}
	}
	c.promote(sum)
}

// digestOf gives the image's digest by want's algorithm. One that was not
// known when hashing began takes another pass.
func (c *content) digestOf(want backends.Digest) (backends.Digest, error) {
	h := c.check.hashes[want.Algorithm]
	if h == nil {
		h = want.NewHash()
		if _, err := io.Copy(h, io.NewSectionReader(c.work.data, 0, c.size)); err != nil {
			return backends.Digest{}, err
		}
	}
	got, _ := backends.NewDigest(want.Algorithm, hexOf(h))
	return got, nil
}

// promote makes the partial file the verified blob: fsync, rename, link. Who
// reads the old descriptor meanwhile goes on or looks again.
func (c *content) promote(digest backends.Digest) {
	d := c.s.disk
	f, err := d.install(c.ctx, filepath.Join(c.work.dir, "data"), digest, c.size)
	if err != nil {
		c.checked(c.localError(err))
		return
	}
	if err := d.writeLink(c.key, digest, c.size); err != nil {
		c.s.opt.Log.Warn("a verified image cannot be found again later", "image", c.rec.Ref.String(), "error", err)
	}
	work := c.adopt(f, c.size, digest)
	if err := work.discard(); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.s.opt.Log.Warn("a partial file is left over", "image", c.rec.Ref.String(), "error", err)
	}
	c.s.makeRoom()
}

// checked ends a verification that could not be finished. The bytes that are
// here still serve.
func (c *content) checked(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check.running, c.check.err = false, err
	c.wake(0, len(c.state), nil)
}

// mismatch drops bytes that are not what the registry said, to be fetched
// once more; the second time nothing of them is served any more.
func (c *content) mismatch(want, got backends.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &c.check
	v.running, v.pos, v.hashes = false, 0, nil
	clear(c.state)
	clear(c.crcs)
	c.missing, c.prefix = len(c.state), 0
	err := backends.Errorf("read", c.rec.Ref, backends.Corrupt, "digest is %s, the registry says %s", got, want)
	if v.fresh {
		c.fail(err)
		return
	}
	v.fresh = true
	c.s.opt.Log.Warn("fetching an image again", "image", c.rec.Ref.String(), "error", err)
	// mu is held across this disk work, so that no flight starts on the old file.
	if err := c.work.renew(c.size); err != nil {
		c.fail(c.localError(err))
		return
	}
	_ = c.work.setHeader(c.size, v.validator) // without it the file is not resumed
	c.wake(0, len(c.state), nil)
	if c.whole {
		_ = c.startDownload() // readers ask, and are told, themselves
	}
	c.pump()
}
